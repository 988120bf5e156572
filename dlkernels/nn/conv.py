"""Convolutions. A padding_mode other than "zeros" pads the input first, as torch.nn does."""

import torch
import torch.nn.functional as F

from dlkernels import functional as DF


class _Padded:
    """What torch.nn's convolutions do with their padding, in front of our kernels."""

    def _conv_forward(self, input, weight, bias):
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv1d(_Padded, torch.nn.Conv1d):
    _function = staticmethod(DF.conv1d)


class Conv2d(_Padded, torch.nn.Conv2d):
    _function = staticmethod(DF.conv2d)


class ConvTranspose2d(torch.nn.ConvTranspose2d):
    def forward(self, input, output_size=None):
        output_padding = self._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 2, self.dilation
        )
        return DF.conv_transpose2d(
            input, self.weight, self.bias, self.stride, self.padding, output_padding, self.groups, self.dilation
        )
