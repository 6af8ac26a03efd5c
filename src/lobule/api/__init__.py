"""The functions of the Python API, which the command line calls too."""

from lobule.api.evaluation import evaluate
from lobule.api.exchange import export, import_annotations, report
from lobule.api.features import extract_features
from lobule.api.models import scan, train

__all__ = ["evaluate", "export", "extract_features", "import_annotations", "report", "scan", "train"]
