"""Models: the targets of `conf/model/*.yaml`. Each is an `nn.Module` class."""

from sweep.models.convnet import ConvNet as ConvNet
from sweep.models.mlp import MLP as MLP
from sweep.models.mlp import Linear as Linear
from sweep.models.resnet import ResNet as ResNet
from sweep.models.transformer import Transformer as Transformer
