"""Final answers, their equality, and the arithmetic of chains: on tables, on laws, and on real graded solutions."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.engine.errors import FactoryError
from factory.verify import approximate, symbolic
from factory.verify.arithmetic import equations
from factory.verify.mathematics import choice, correct, equivalent, final_answer, numeric, steps
from tests.conftest import REPOSITORY
from tests.verify.graded import chains, gsm8k, math_maj, svamp

settings.register_profile("patient", deadline=None)  # the symbolic process starts within some example
settings.load_profile("patient")

EQUAL = r"""
1/2 ~ 0.5
\frac12 ~ 1/2
1,000 ~ 1000
900,\!000,\!000 ~ 900000000
10{,}000 ~ 10000
50\% ~ 0.5
50\% ~ 50
50 percent ~ 50%
\$18 ~ 18
$18 ~ 18 dollars
18 apples ~ 18
5 cm ~ 5\text{ cm}
500 cm ~ 5 m
1 hour ~ 60 minutes
9\pi ~ 9\pi \text{ cm}^2
9 square feet ~ 9\text{ ft}^2
48^\circ ~ 48 degrees
12\frac{3}{5} ~ 12.6
2 1/2 ~ 2.5
2½ ~ 5/2
-\frac{1}{2} ~ \frac{1}{-2}
3e8 ~ 3 \times 10^8
1.5\times 10^{-3} ~ 0.0015
0.333333 ~ 1/3
0.\overline{3} ~ 1/3
２５ ~ 25
0 ~ -0
5! ~ 120
\sqrt{16} ~ 4
(1,2) ~ ( 1, 2 )
\left(\frac{1}{2}, 3\right) ~ (0.5,3)
(3,4) ~ 3, 4
x = 3, y = 4 ~ (3,4)
\{1,2\} ~ \{2, 1\}
1,2 ~ 2 and 1
x=1 or x=2 ~ 2, 1
\pm 3 ~ 3,-3
1\pm\sqrt{2} ~ 1+\sqrt2, 1-\sqrt2
x=1 ~ 1
y=2x+1 ~ 2x+1
y=2x+1 ~ y = 1+2x
2x-y+3=0 ~ y=2x+3
[1,2) ~ 1 \le x < 2
(1,\infty) ~ x > 1
(-\infty, 3] ~ x \leq 3
x \in [1,2] ~ [1,2]
]1,2[ ~ (1,2)
(2,\infty)\cup(-\infty,1) ~ x<1 or x>2
\begin{pmatrix}1&2\\3&4\end{pmatrix} ~ \begin{bmatrix} 1 & 2 \\ 3 & 4.0 \end{bmatrix}
\begin{pmatrix}1\\1/2\end{pmatrix} ~ (1,0.5)
\text{Evelyn} ~ Evelyn
no solution ~ No solution.
4:30 p.m. ~ \text{4:30 PM}
\text{(A)} ~ A
B. 12 ~ B
\frac{\sqrt3}{2} ~ \sqrt{3}/2
1/\sqrt2 ~ \frac{\sqrt{2}}{2}
(x+1)^2 ~ x^2+2x+1
2\sin x\cos x ~ \sin(2x)
6\sqrt{2} ~ \sqrt{72}
\binom{5}{2} ~ 10
3+4i ~ 4i+3
"""

DIFFERENT = r"""
1/2 ~ 1/3
1000 ~ 1001
25 ~ 0.25
50% ~ 5
5 cm ~ 5 m
5 m ~ 5 seconds
100 degrees ~ 100 miles
(1,2) ~ (2,1)
\{1,2\} ~ \{1,3\}
\{3\} ~ 3
1,2 ~ 1
1,2,3 ~ 1,2
3 or 4 ~ 4
either 3 or 4 ~ 3
between 3 and 5 ~ 5
\pm 3 ~ 3
x=1 ~ x=1 or x=2
(1,234) ~ 1234
1 2 ~ 12
1 1/2 ~ 11/2
[1,2) ~ [1,2]
(1,2) ~ [1,2]
x>1 ~ x\ge 1
x>1 ~ x<1
x<5 ~ 5
1.0 ~ 0.9999999
0.0000001 ~ 0
3.14 ~ \pi
0.33 ~ 1/3
\frac{1}{3} ~ 0.3333
\sqrt{2} ~ 1.41
2.718 ~ e
262537412640768744 ~ e^{\pi\sqrt{163}}
A ~ B
A ~ A, B, C and D
A ~ (A) 3 (B) 4
(A) 3 ~ (B) 3
x=3 ~ y=3
2x ~ 2y
5x ~ 5
5xy ~ 5
3\pi ~ 3
2 \sin x ~ 2
x+1 ~ x-1
x^2 ~ 2x
4:30 ~ 4:30 p.m.
4:30 am ~ 4:30 pm
1:2 ~ 1/3
not 5 ~ 5
12 ~ 21
-5 ~ 5
5! ~ 5
yes ~ no
Evelyn ~ Briana
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}2\\1\end{pmatrix}
"""

ANSWERS = [
    (r"So \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    (r"First \boxed{3}, later \boxed{4}", "4"),
    (r"The roots are $\boxed{3}$ and $\boxed{4}$.", "3, 4"),
    (r"\boxed{3} or \boxed{4}", "3 or 4"),
    (r"\boxed{3}. The answer is 4", "3"),
    (r"It is 12, so \boxed{12", ""),
    (r"Put it in \boxed{}. The answer is 5", "5"),
    ("3 + 4\n#### 1,234", "1,234"),
    ("The answer is 42.", "42"),
    (r"The final answer is $\frac{1}{2}$. I hope it is right.", r"\frac{1}{2}"),
    ("**Answer:** 42 apples", "42 apples"),
    ("### Final Answer\n\n42", "42"),
    ("Answer: B", "B"),
    ("The correct option is (D) because x", "D"),
    ("3 + 4\nA: 18", "18"),
    ("答案是42。", "42"),
    ("所以答案为 3/4", "3/4"),
    ("故选：C。", "C"),
    ("The final answer is that Janet makes $18 every day.", "18"),
    ("The answer is 5 + 4 = 9.", "9"),
    ("Is the answer 5? I check. The answer is 6.", "6"),
    ("The answer is not 5.", "not 5"),
    ("Therefore she has 12 apples and gets $18 per day.", "18"),
    ("So the total is 3*4 = 12.", "12"),
    (r"Thus the area is $\frac{\pi}{4}$.", r"\frac{\pi}{4}"),
    ("It could be 3 or 4.", "3 or 4"),
    ("Hence the result is -7.", "-7"),
    ("For the glass he needs to pay 5 * 1", ""),
    ("x^2+1", "x^2+1"),
    ("<think>the answer is 3</think>The answer is 4", "4"),
    ("<think>the answer is 3", ""),
    ("The answer is 4.\n\nQuestion: What is 3 + 4?\nAnswer: 7", "4"),
    ("The answer is 4<|im_end|>\n<|im_start|>user\nThe answer is 9", "4"),
    ("", ""),
]


WRONG = r"""
The answer is 5. But wait, the answer is 6. ~ 5
Answer: 5 or 6 ~ 6
I think 5. Maybe 6. ~ 5
\boxed{5, 6} ~ 5
\boxed{5 \text{ or } 6} ~ 5
\boxed{x=5 \text{ or } x=6} ~ 5
\boxed{5}\boxed{6} ~ 5
The answer is 5 or possibly 6 ~ 6
Answer: A or B ~ B
Answer: (A), (B) ~ A
\boxed{A, B} ~ A
\boxed{AB} ~ A
The answer is 1,2 ~ 12
\boxed{12\%} ~ 1.2
\boxed{\text{5 cm}} ~ 5 km
\boxed{5 km} ~ 5000
\boxed{$5$ or $6$} ~ 6
The answer is greater than 5 ~ 5
The answer is at least 5 ~ 5
less than 5 ~ 5
\boxed{>5} ~ 5
\boxed{\geq 5} ~ 5
\boxed{\approx 5} ~ 5
\boxed{5?} ~ 5
\boxed{} ~ 0
\boxed{?} ~ 5
5 6 7 8 ~ 8
1, 2, 3, 4, 5 ~ 5
The answer is one of 1, 2, 3, 4, 5 ~ 5
\boxed{5^{6}} ~ 56
\boxed{5_6} ~ 5
\boxed{-} ~ -1
\boxed{1/0} ~ 0
\boxed{\text{the answer}} ~ 5
The answer is **not** 5 ~ 5
The answer can't be 5 ~ 5
The answer is the number of apples, 5 or so ~ 5
The answer cannot be 5 ~ 5
Answer: 5/6 ~ 5
\boxed{5 \cdot} ~ 5
\boxed{5 +} ~ 5
\boxed{(5} ~ 5
\boxed{5, 5, 6} ~ 5, 6, 6
\boxed{0.5} ~ \frac{1}{3}
\boxed{y=2x+1} ~ y=2x-1
\boxed{True} ~ False
\boxed{2^{10}} ~ 1025
\boxed{abc} ~ abd
\boxed{\mathbb{R}} ~ \mathbb{Z}
\boxed{\{1,2,3\}} ~ \{1,2\}
\boxed{10 \text{ dollars}} ~ 10 \text{ cents}
\boxed{5i} ~ 5
\boxed{5e} ~ 5
\boxed{5 \sqrt{}} ~ 5
\boxed{|5|} ~ -5
\boxed{\frac{1}{2}, } ~ \frac12, 3
\boxed{1 - 2} ~ 1-3
\boxed{2-3} ~ -1.0001
\boxed{any number} ~ 7
\boxed{7 or any number} ~ 7
\boxed{x} ~ 7
\boxed{n = 7k} ~ 7
\boxed{7k} ~ 7
\boxed{7 \pm 1} ~ 7
\boxed{7!} ~ 7
\boxed{7:1} ~ 7
\boxed{(7)(1, 2)} ~ 7
\boxed{[7]} ~ \{7\}
\boxed{7\text{ is wrong}} ~ 7
\boxed{7 million} ~ 7
\boxed{7 thousand} ~ 7
\boxed{7 dozen} ~ 7
\boxed{7 hundred} ~ 7
A: 7 billion ~ 7
\boxed{half of 7} ~ 7
\boxed{7th} ~ 7
\boxed{7 \times} ~ 7
\boxed{7 squared} ~ 7
\boxed{7 x} ~ 7
\boxed{7 to 9} ~ 7
\boxed{7-9} ~ 7
\boxed{7 k} ~ 7
\boxed{7\%} ~ 700
\boxed{0.07} ~ 7
\boxed{7 not 8} ~ 7
\boxed{7 unless 8} ~ 7
\boxed{7\text{ to the }8} ~ 7
"""

RIGHT = r"""
Answer: $\boxed{12}$ minutes ~ 12
**Final Answer**: The final answer is $\boxed{(3, \infty)}$ ~ (3,\infty)
Therefore, the answer is $\frac{3}{4}$ cups. ~ 3/4
The answer is: 3/4 cup ~ \frac34
So, the total is **$1,234.50**. ~ 1234.5
Thus there are $2^{5} = 32$ ways. ~ 32
The solutions are $x = 2$ and $x = -3$. ~ -3, 2
\boxed{x = 2, -3} ~ \{2,-3\}
the probability is 1/36 ~ \frac{1}{36}
The answer is 1.2 million ~ 1200000
\boxed{1200000} ~ 1.2 million
答案：12 个 ~ 12
answer is 12 m/s ~ 12
The answer is $12\text{ cm}^2$. ~ 12
\boxed{\textbf{(C)}\ 12} ~ C
\boxed{\text{C}} ~ C
The answer is \(\frac{\pi}{2}\). ~ \pi/2
\boxed{\$18.90} ~ 18.9
\boxed{90^\circ} ~ 90
\boxed{11:00\text{ a.m.}} ~ 11:00 AM
\boxed{\frac{3}{4} \text{ cups}} ~ 0.75
\boxed{2,\!500} ~ 2500
The final answer is 5 units. ~ 5
So she needs 5 more apples. ~ 5
She has 5 apples left. ~ 5
\boxed{f(x) = 2x+1} ~ 2x+1
\boxed{3x^2 + 2x} ~ 2x+3x^2
\boxed{k=4} ~ 4
\boxed{10,000} ~ 10^4
Answer: 7 dozen ~ 84
"""


def pairs(table: str) -> list[tuple[str, str]]:
    return [tuple(line.split(" ~ ")) for line in table.strip().splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize(("one", "other"), pairs(EQUAL))
def test_two_spellings_of_a_value_are_equal(one, other):
    assert equivalent(one, other) and equivalent(other, one)


@pytest.mark.parametrize(("one", "other"), pairs(DIFFERENT))
def test_two_values_are_not_equal(one, other):
    assert not equivalent(one, other) and not equivalent(other, one)


@pytest.mark.parametrize(("response", "answer"), ANSWERS)
def test_the_final_answer_is_found(response, answer):
    assert final_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is either 3 or 4.", "4"),
        (r"\boxed{3} or \boxed{4}", "4"),
        (r"\boxed{4} then again \boxed{3}", "4"),
        ("(A) 3 (B) 4 (C) 5 (D) 6", "6"),
        ("(A) 3 (B) 4 (C) 5 (D) 6", "D"),
        ("The answer is A, B, C or D", "D"),
        ("The answer is not 5", "5"),
        ("The answer is between 3 and 5", "5"),
        (r"so we are at 12 and then \boxed{120", "12"),
        ("I was asked for the price of 5 apples. I cannot say", "7"),
        ("<think>It is 5. The answer is 5.", "5"),
        ("It remains to take 7 + 5", "5"),
        ("", "7"),
    ],
)
def test_what_does_not_answer_is_wrong(response, answer):
    assert not correct(response, answer).passed


@pytest.mark.parametrize(("response", "answer"), pairs(WRONG))
def test_what_is_not_the_answer_or_no_clear_one_is_wrong(response, answer):
    assert not correct(response, answer).passed


@pytest.mark.parametrize(("response", "answer"), pairs(RIGHT))
def test_what_is_the_answer_is_right(response, answer):
    assert correct(response, answer).passed


def test_a_reference_may_be_a_solution():
    assert correct("so 18", "16 - 3 - 4 = 9\n9 * 2 = 18\n#### 18").passed
    assert correct("so 18", r"9 * 2 = \boxed{18}").passed


def test_a_check_says_why_not():
    assert correct("The answer is 5", "6").reason == "5 is not 6"
    assert correct("", "6").reason == "no final answer"
    assert correct(r"The answer is $\sin x + \sin x$", r"2\sin x").reason == "symbolic"


def test_a_reference_that_makes_no_sense_is_told():
    for call in (lambda: correct("5", " "), lambda: numeric("5", "five"), lambda: choice("A", "F", ["1", "2"])):
        with pytest.raises(FactoryError, match="the reference answer"):
            call()


def test_numbers_within_a_tolerance():
    assert numeric("about 33.33", "100/3", tolerance=1e-3).passed
    assert not numeric("about 33.33", "100/3", tolerance=1e-5).passed
    assert numeric("The answer is $1,000", "1000").passed
    assert not numeric("The answer is blue", "1000").passed


def test_an_option_is_named_by_letter_or_text():
    options = ["12", "13", "a whale", "12.0"]
    assert choice("The answer is (B)", "B", options).passed
    assert choice("The answer is 13", "B", options).passed
    assert choice("The answer is C. a whale", "C", options).passed
    assert not choice("The answer is (B)", "C", options).passed
    assert not choice("The answer is 12", "A", options).passed  # two options are 12
    assert not choice("The answer is B or C", "B", options).passed


WHOLE = st.integers(-(10**9), 10**9)
RATIONAL = st.fractions(max_denominator=10**4).filter(lambda x: abs(x) < 10**9)


def decimal(value: Fraction) -> str | None:
    below = value.denominator
    for prime in (2, 5):
        while below % prime == 0:
            below //= prime
    places = 40
    if below != 1:
        return None
    sign = "-" if value < 0 else ""
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return (sign + digits[:-places] + "." + digits[-places:]).rstrip("0").rstrip(".")


def spellings(value: Fraction) -> list[str]:
    """True rewrites of a number."""
    above, below = value.numerator, value.denominator
    sign = "-" if above < 0 else ""
    found = [f"{above}/{below}", rf"\frac{{{above}}}{{{below}}}", rf"${sign}\dfrac{{{abs(above)}}}{{{below}}}$"]
    found += [
        rf"\frac{{{3 * above}}}{{{3 * below}}}",
        f"{value * 100}%" if below == 1 else rf"{sign}{abs(above)} / {below}",
    ]
    written = decimal(value)
    if written:
        found += [written, f"${written}$", rf"{written}\text{{ meters}}", f" {written} . "]
    if below == 1:
        found += [f"{above:,}", f"{above:,}".replace(",", r",\!"), f"{above:,}".replace(",", "{,}"), f"{above}.00"]
    elif abs(above) > below:
        whole, rest = divmod(abs(above), below)
        found += [rf"{sign}{whole}\frac{{{rest}}}{{{below}}}", f"{sign}{whole} {rest}/{below}"]
    return found


@given(value=RATIONAL | WHOLE.map(Fraction), data=st.data())
def test_a_true_rewrite_of_a_number_is_accepted(value, data):
    one, other = data.draw(st.sampled_from(spellings(value))), data.draw(st.sampled_from(spellings(value)))
    assert equivalent(one, other), (one, other)
    assert correct(f"It follows. The answer is {one}.", other).passed, (one, other)
    assert correct(rf"It follows: \boxed{{{one}}}.", other).passed, (one, other)


@given(value=WHOLE.map(Fraction) | st.fractions(max_denominator=999).filter(lambda x: abs(x) < 10**6), data=st.data())
def test_a_perturbed_number_is_rejected(value, data):
    off = data.draw(
        st.sampled_from([Fraction(1), Fraction(-1), Fraction(1, 1000), value or Fraction(7), -2 * value or Fraction(3)])
    )
    wrong = value + off
    if wrong in (value * 100, value / 100):  # a percent sign may be left out
        return
    one, other = data.draw(st.sampled_from(spellings(value))), data.draw(st.sampled_from(spellings(wrong)))
    assert not equivalent(one, other) and not equivalent(other, one), (one, other)


@given(values=st.lists(RATIONAL, min_size=2, max_size=5, unique=True), data=st.data())
def test_sets_have_no_order_and_tuples_do(values, data):
    spelt = [data.draw(st.sampled_from([x for x in spellings(v) if "," not in x and "text" not in x])) for v in values]
    moved = data.draw(st.permutations(range(len(values))))
    again = [spelt[k] for k in moved]
    assert equivalent(r"\{" + ", ".join(spelt) + r"\}", r"\{" + ",".join(again) + r"\}")
    assert equivalent("(" + ", ".join(spelt) + ")", "(" + ", ".join(again) + ")") == (list(moved) == sorted(moved))


@given(low=WHOLE, size=st.integers(1, 10**6), shut=st.tuples(st.booleans(), st.booleans()), wrong=st.booleans())
def test_an_interval_is_an_inequality(low, size, shut, wrong):
    high = low + size
    written = f"{'[' if shut[0] else '('}{low}, {high}{']' if shut[1] else ')'}"
    at = [shut[0], shut[1] != wrong]
    signs = [r"\leq" if closed else "<" for closed in at]
    stated = f"{low} {signs[0]} x {signs[1]} {high}"
    assert equivalent(written, stated) == equivalent(stated, written) == (not wrong)


FACTOR = st.integers(1, 99) | st.integers(-99, -1)


@settings(max_examples=50)
@given(numbers=st.tuples(FACTOR, FACTOR, FACTOR, FACTOR), off=st.integers(-3, 3), letter=st.sampled_from("xyat"))
def test_a_product_is_its_expansion(numbers, off, letter):
    a, b, c, d = numbers
    product = f"({a}{letter}{b:+})({c}{letter}{d:+})"
    expanded = f"{a * c}{letter}^2{a * d + b * c:+}{letter}{b * d + off:+}"
    assert approximate.same(product, expanded) in ((off == 0), None)
    assert equivalent(product, expanded) == equivalent(expanded, product) == (off == 0)


@pytest.mark.parametrize(
    ("one", "other"), [(r"\sqrt{x^2}", "x"), ("1/2x", r"\frac{1}{2x}"), (r"e^{\pi\sqrt{163}}", "262537412640768744")]
)
def test_values_that_say_nothing_are_left_to_sympy(one, other):
    assert approximate.same(one, other) is None


PIECES = [
    *(r"\frac", "{", "}", r"\boxed{", "(", ")", "[", "$", "1", "23", ",", ".", "=", "%", "^", "-", " ", "answer is"),
    *(r"\sqrt", "A", "<", r"\le", r"\cup", "&", r"\\", "####", "\n", "or", "and", r"\pm", "cm", "<<", ">>", "of"),
]
SCRAPS = st.lists(
    st.sampled_from(PIECES),
    max_size=30,
).map("".join)


@given(response=SCRAPS | st.text(max_size=200), answer=WHOLE.map(str) | st.text("abc1(),", min_size=1, max_size=8))
def test_no_text_raises(response, answer):
    check = correct(response, answer)
    assert isinstance(check.passed, bool) and (check.passed or check.reason)
    assert isinstance(steps(response).passed, bool)


LONG = [
    *("1" * 100_000, "{" * 100_000, "(" * 1900, r"\sqrt{" * 400 + "2" + "}" * 400, r"\boxed{" * 20_000),
    *("answer is " * 20_000, "answer:\n" * 20_000, "#### " * 20_000, "$" * 50_000, r"\(x" * 20_000),
    *("=" * 50_000, "1=1" * 20_000, "<<" * 20_000, "1+1 = " * 10_000, "1," * 900 + "1", "-" * 1500 + "1"),
    *("a b " * 20_000, "\ud800", "\x00"),
]


@pytest.mark.parametrize("text", LONG, ids=lambda text: text[:8].encode("unicode_escape").decode() + str(len(text)))
def test_long_and_odd_texts_take_no_time(text):
    start = time.process_time()
    assert not correct(text, "42").passed
    assert not correct(rf"\boxed{{{text}}}", "42").passed
    steps(text)
    assert time.process_time() - start < 10  # 0.1 on an idle machine; what is quadratic takes minutes


@pytest.mark.parametrize("tower", [r"9^{9^{9^9}}", r"\sum_{n=1}^{10^9} \frac{1}{n^3+n+1}"])
def test_what_takes_too_long_is_a_timeout_and_the_next_is_answered(tower):
    check = correct(rf"\boxed{{{tower}}}", r"42\pi")
    assert not check.passed and check.reason == "timeout"
    assert equivalent(r"2\sin x\cos x", r"\sin(2x)")


def test_memory_is_bounded():
    """The fork at work has its limit of address space from the kernel."""
    server = symbolic.Server()
    try:
        server.ask("x", "y")
        assert server.process is not None
        asking = threading.Thread(target=server.ask, args=(r"9^{9^{9^9}}", r"\pi"))
        asking.start()
        while asking.is_alive() and not (workers := descendants(server.process.pid)):
            time.sleep(0.01)
        time.sleep(0.2)
        limits = Path(f"/proc/{workers[0]}/limits").read_text()
        assert re.search(rf"Max address space\s+{symbolic.MEMORY}\s", limits)
        asking.join()
    finally:
        server.stop()


def test_threads_may_ask():
    questions = [(rf"\sin({k}x)+1", rf"1+\sin(x*{k})") for k in range(2, 14)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda pair: equivalent(*pair), questions))


def ask_in_a_worker(number: int) -> tuple[bool, bool]:
    sine = rf"\sin({number}x)"
    return equivalent(sine + "+1", "1+" + sine), equivalent(sine, rf"\sin({number + 1}x)")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_may_ask(method):
    assert (
        symbolic.compare("x+x", "2x")[0] == "equal"
    )  # so that a fork inherits a running process, which it must not use
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(ask_in_a_worker, [2, 3, 5, 7]) == [(True, False)] * 4
    assert symbolic.compare("x+x+x", "3x")[0] == "equal"


def test_a_killed_process_is_started_again():
    server = symbolic.Server()
    try:
        assert server.ask("x+x", "2x")[0] == "equal"
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        assert server.ask("x+x", "2x")[0] == "equal"
    finally:
        server.stop()


VICTIM = r"""
import sys, threading, time
from factory.verify import symbolic
symbolic.SERVER.ask("x", "y")
threading.Thread(target=symbolic.SERVER.ask, args=(r"9^{9^{9^9}}", r"\pi"), daemon=True).start()
time.sleep(0.3)
print(symbolic.SERVER.process.pid, flush=True)
time.sleep(600)
"""


def descendants(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_when_we_are_killed_nothing_stays():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    victim = subprocess.Popen([sys.executable, "-c", VICTIM], stdout=subprocess.PIPE, text=True, env=environment)
    server = int(victim.stdout.readline())  # type: ignore[union-attr]
    left = [server, *descendants(server)]
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in left if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


HOLDS = [
    "12 * 3 = 36",
    "She pays $12 + 5 = $17 in all.",
    "He runs 4 hours x 3 miles/hour = <<4*3=12>>12 miles.",
    "3 + 4 = 7, and 7 * 2 = 14.",
    r"\[ 10 \cdot 6 \cdot 7 = 420 \]",
    r"\(\frac{1}{2} \times 30 = 15\)",
    "1/2 of 30 is 15",
    "20% of 50 is 10, so 50 - 10 = 40",
    "Half of 30 is 15",
    "100 - 20% = 80",
    "25/75 = 33.33%",
    "10 / 3 = 3.33",
    "10 / 3 is rounded: 10 / 3 = 3",
    "2 * 18.5 = 37.0 = 74 / 2",
    "x + 3 = 5",
    "2x = 10 and x/2 = 5/2",
    "f(2) = 4",
    "17 = 2 (mod 5), 7 + 5 = 2 (mod 10)",
    "5 feet + 3 inches = 63 inches",
    "2 dozen * 2 = 48",
    "$2.50 - $2.24 = 26 cents",
    "74 / 8 = 9 remainder 2",
    "1. 3 + 4 = 7\n2. 7 - 4 = 3",
    "7 = 7",
    "0.1 * 7 = 0.7000000000000001",
    "1 1/2 + 1 = 2 1/2",
    "1,000 * 3 = 3,000",
]
FAILS = [
    ("12 * 3 = 35", "line 1: 12 * 3 = 35 should be 36"),
    ("First.\n<<12*3=35>>", "line 2: 12*3=35 should be 36"),
    ("She pays $12 + 5 = $18.", "line 1: 12 + 5 = 18 should be 17"),
    ("20% of 50 is 12", "line 1: 20% of 50 = 12 should be 10"),
    (r"\(\frac{1}{2} \times 30 = 16\)", r"line 1: \frac{1}{2} * 30 = 16 should be 15"),
    ("3 * 4 = 12 = 13", "line 1: 12 = 13 should be 12"),
    ("10 / 4 = 2.4", "line 1: 10 / 4 = 2.4 should be 2.5"),
    ("1/2 of 30 is 16", "line 1: 1/2 of 30 = 16 should be 15"),
    ("4 apples + 3 apples = 8 apples", "line 1: 4 apples + 3 apples = 8 should be 7"),
    ("2 + 2 = 4\n3 + 3 = 7\n1 + 1 = 3", "line 2: 3 + 3 = 7 should be 6"),
]


@pytest.mark.parametrize("chain", HOLDS)
def test_no_false_alarm(chain):
    assert steps(chain).passed, steps(chain).reason


@pytest.mark.parametrize(("chain", "reason"), FAILS)
def test_the_first_wrong_equation_is_named(chain, reason):
    check = steps(chain)
    assert not check.passed and check.reason == reason


def test_the_score_is_the_share_that_holds():
    assert steps("2 + 2 = 4\n3 + 3 = 7\n1 + 1 = 3\n1 + 2 = 3").score == 0.5
    assert steps("Nothing to reckon.").reason == "no equations"


@given(a=st.integers(0, 9999), b=st.integers(1, 9999), sign=st.sampled_from("+-*/"), off=st.integers(-9, 9))
def test_an_equation_is_judged_by_its_value(a, b, sign, off):
    value = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b)}[sign]
    if Fraction(value).denominator == 1:
        assert steps(f"He gets {a} {sign} {b} = {value + off} of them.").passed == (off == 0)


def test_agreement_with_the_verdicts_on_gsm8k(data):
    wrong = [row for row in gsm8k(data) if correct(row.response, row.answer).passed != row.verdict]
    total = sum(1 for _ in gsm8k(data))
    for row in wrong:
        print(row.verdict, repr(row.answer), repr(row.response[-100:]))
    assert total == 5276 and 1 - len(wrong) / total >= 0.995


def test_agreement_with_the_verdicts_on_math(data):
    """Against the reference as it was normalised for those verdicts; beside it, as it was written (see the page)."""
    for written, limit in ((False, 0.99), (True, 0.985)):
        rows = list(math_maj(data, written))
        wrong = [row for row in rows if correct(row.response, row.answer).passed != row.verdict]
        for row in wrong:
            print(written, row.verdict, repr(row.answer), repr(row.response[-100:]))
        assert len(rows) == 800 and 1 - len(wrong) / len(rows) >= limit


def test_svamp_answers_are_their_equations(data):
    """SVAMP's answer is the value of its equation; in the sentence of a response it is found again."""
    found = svamp(data)
    assert [pair for pair in found if not equivalent(*pair)] == [("( ( 4.0 - 2.0 ) + 3.0 )", "1.0")]  # which is not so
    for equation, answer in found:
        assert correct(f"We compute {equation}. So the answer is {answer}.", answer).passed
        assert not correct(f"We compute {equation}. So the answer is {float(answer) + 1}.", answer).passed


def test_chains_of_gsm8k_raise_few_alarms(data):
    """The solutions were written by people: of 46,000 equations 30 do not hold, nearly all of them slips of theirs."""
    count, alarms = 0, []
    for chain in chains(data):
        found = list(equations(chain))
        count += len(found)
        alarms += [f"{e.text} → {e.right}" for e in found if not e.holds][:1]
    print("\n".join(alarms))
    assert count > 45_000 and len(alarms) <= 35


def test_annotations_made_wrong_are_found(data):
    """Each calculator annotation, its result off by one: the chain is rejected."""
    missed = total = 0
    for chain in list(chains(data))[:1000]:
        match = re.search(r"<<([^=<>]+)=(-?\d+)>>", chain)
        if match and steps(chain).passed:
            broken = chain[: match.start(2)] + str(int(match[2]) + 1) + chain[match.end(2) :]
            total += 1
            missed += steps(broken).passed
    assert total > 800 and missed <= total * 0.01


def test_the_data_are_read_whole(data):
    assert len(list(chains(data))) == 7473
    assert sum(json.dumps(row.verdict) == "true" for row in gsm8k(data)) == 2001
