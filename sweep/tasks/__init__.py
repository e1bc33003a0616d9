"""Tasks: the targets of `conf/task/*.yaml`. A task is the loss to train with and the metrics to measure."""

from sweep.tasks.classes import Binary as Binary
from sweep.tasks.classes import Classification as Classification
from sweep.tasks.classes import LanguageModel as LanguageModel
from sweep.tasks.classes import Multilabel as Multilabel
from sweep.tasks.classes import Segmentation as Segmentation
from sweep.tasks.losses import Pinball as Pinball
from sweep.tasks.numbers import Quantile as Quantile
from sweep.tasks.numbers import Regression as Regression
from sweep.tasks.task import Metric as Metric
from sweep.tasks.task import Task as Task
from sweep.tasks.task import TensorTask as TensorTask
