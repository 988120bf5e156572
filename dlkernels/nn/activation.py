"""Activations, softmax and log-softmax."""

import torch

from dlkernels import functional as DF


class ReLU(torch.nn.ReLU):
    def forward(self, input):
        return DF.relu(input, self.inplace)


class ReLU6(torch.nn.ReLU6):
    def forward(self, input):
        return DF.hardtanh(input, self.min_val, self.max_val, self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    def forward(self, input):
        return DF.leaky_relu(input, self.negative_slope, self.inplace)


class ELU(torch.nn.ELU):
    def forward(self, input):
        return DF.elu(input, self.alpha, self.inplace)


class Hardtanh(torch.nn.Hardtanh):
    def forward(self, input):
        return DF.hardtanh(input, self.min_val, self.max_val, self.inplace)


class Sigmoid(torch.nn.Sigmoid):
    def forward(self, input):
        return DF.sigmoid(input)


class Tanh(torch.nn.Tanh):
    def forward(self, input):
        return DF.tanh(input)


class GELU(torch.nn.GELU):
    def forward(self, input):
        return DF.gelu(input, self.approximate)


class SiLU(torch.nn.SiLU):
    def forward(self, input):
        return DF.silu(input, self.inplace)


class Softplus(torch.nn.Softplus):
    def forward(self, input):
        return DF.softplus(input, self.beta, self.threshold)


class Softmax(torch.nn.Softmax):
    def forward(self, input):
        return DF.softmax(input, self.dim, _stacklevel=5)


class LogSoftmax(torch.nn.LogSoftmax):
    def forward(self, input):
        return DF.log_softmax(input, self.dim, _stacklevel=5)
