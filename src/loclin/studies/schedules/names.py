"""Names of the study's rows and of their conditions, once. Imports nothing heavy."""

#: Pairs of tasks by the cosine of their gradients at θ₀: the largest, of the others the nearest to
#: 0, and the smallest. A run's mean over its pairs, or all tasks of a user at once.
KINDS = ("agreeing", "neutral", "conflicting")
EVERY_PAIR = "all"

#: Specialists of two tasks; two of one task with its data in another order, which are as near as
#: two can come that differ by noise alone.
TWO, AGAIN = "A and B", "A and A again"

#: Where all schedules start, where each ends, and what it took.
FIRST, FIRST_WORST = "first_score", "first_worst_score"
SCORE, WORST, MEAN = "score", "worst_score", "mean_score"
VALIDATED_WORST = "validated_worst_score"
EVALUATIONS, STEPS = "evaluations", "steps"
#: The strength of a remedy or of a merge that was chosen; scores on validation examples under each.
STRENGTH, STRENGTH_SCORE, STRENGTH_WORST = "strength", "strength_score", "strength_worst_score"
#: On the way, and on the line between two specialists.
CURVE_LOSS, CURVE_SCORE, CURVE_WORST = "curve_loss", "curve_score", "curve_worst_score"
GRADIENT_COSINE = "gradient_cosine"
LINE_LOSS, LINE_SCORE, LINE_WORST = "line_loss", "line_score", "line_worst_score"
BARRIER = "barrier"
#: Of the gradients of two tasks, and of those of two halves of one task's examples.
PAIR_COSINE, HALF_COSINE = "pair_cosine", "half_cosine"
#: Of the first updates of two specialists, and of their whole ways.
OVERLAP, DISPLACEMENT_COSINE = "overlap", "displacement_cosine"
#: What is a score, and what a cosine.
SCORES = (
    *(FIRST, FIRST_WORST, SCORE, WORST, MEAN, VALIDATED_WORST, STRENGTH_SCORE, STRENGTH_WORST),
    *(CURVE_SCORE, CURVE_WORST, LINE_SCORE, LINE_WORST),
)
COSINES = (GRADIENT_COSINE, PAIR_COSINE, HALF_COSINE, DISPLACEMENT_COSINE)
#: The ranking: a schedule's place, its worst task less the reference's, and p after Holm.
PLACE, DIFFERENCE, DIFFERENCE_P = "place", "worst_score_difference", "worst_score_difference_p_holm"
#: The recommendation: what is best on validation examples; which schedule is recommended, with its
#: worst task less the best's; every other schedule's worst task less the recommended one's.
BEST, RECOMMENDED, LESS_RECOMMENDED = "best_validated", "recommended", "less_recommended"
#: What decides: the better sequential order's worst task less that of every simultaneous schedule,
#: and of the median one; the worst task by one simultaneous schedule less that by another.
ORDER_LESS, MEDIAN, APART = "better_order_less", "median of them", "simultaneous_difference"
BETTER, ALIKE, WORSE = "better", "not told apart", "worse"


def role(place: int) -> str:
    """The letter of a task by its place in the order.

    >>> role(0), role(27)
    ('A', 'B2')
    """
    turn, letter = divmod(place, 26)
    return chr(ord("A") + letter) + (str(turn + 1) if turn else "")
