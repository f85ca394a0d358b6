
// What the tests of MBXP use of the NuGet package CompareNETObjects: values are compared by type and content.
namespace KellermanSoftware.CompareNetObjects
{
    public class ComparisonResult
    {
        public bool AreEqual;
    }

    public class CompareLogic
    {
        public ComparisonResult Compare(object actual, object expected)
        {
            return new ComparisonResult { AreEqual = Same(actual, expected) };
        }

        static bool Same(object a, object b)
        {
            if (a == null || b == null) return a == b;
            if (a.GetType() != b.GetType()) return false;
            var x = a as System.Collections.IDictionary;
            if (x != null)
            {
                var y = (System.Collections.IDictionary) b;
                if (x.Count != y.Count) return false;
                foreach (var key in x.Keys)
                    if (!y.Contains(key) || !Same(x[key], y[key])) return false;
                return true;
            }
            var one = a as System.Collections.IEnumerable;
            if (one == null || a is string) return a.Equals(b);
            var left = one.GetEnumerator();
            var right = ((System.Collections.IEnumerable) b).GetEnumerator();
            while (left.MoveNext())
                if (!right.MoveNext() || !Same(left.Current, right.Current)) return false;
            return !right.MoveNext();
        }
    }
}
