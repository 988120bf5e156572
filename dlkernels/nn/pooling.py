"""Pooling layers."""

import torch

from dlkernels import functional as DF


class MaxPool2d(torch.nn.MaxPool2d):
    def forward(self, input):
        return DF.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool2d(torch.nn.AvgPool2d):
    def forward(self, input):
        return DF.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    def forward(self, input):
        return DF.adaptive_avg_pool2d(input, self.output_size)
