"""What is measured, and how: the parts that ``offbeat bench`` and ``make bench`` share."""
