"""Reviews: what a person says about the findings of a case, in one append-only file per case and person.

The files lie in `reviews/CASE/PERSON.jsonl` beside the results and never change what a model has written.
"""

from lobule.reviews.annotations import reviewed_annotation
from lobule.reviews.files import (
    FOLDER,
    Review,
    append_review,
    in_force,
    read_reviews,
    review_path,
    reviewed_cases,
)
from lobule.reviews.verdicts import ReviewedFinding, reviewed_findings, verdicts

__all__ = [
    "FOLDER",
    "Review",
    "ReviewedFinding",
    "append_review",
    "in_force",
    "read_reviews",
    "review_path",
    "reviewed_annotation",
    "reviewed_cases",
    "reviewed_findings",
    "verdicts",
]
