"""What people read of a dataset: the funnel, a forecast, sampled rows, the recipe reference."""
