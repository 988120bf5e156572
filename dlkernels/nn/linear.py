"""Linear layers and what stands around them: dropout, flattening."""

import torch

from dlkernels import functional as DF


class Linear(torch.nn.Linear):
    def forward(self, input):
        return DF.linear(input, self.weight, self.bias)


class Dropout(torch.nn.Dropout):
    def forward(self, input):
        return DF.dropout(input, self.p, self.training, self.inplace)


class Dropout2d(torch.nn.Dropout2d):
    def forward(self, input):
        return DF.dropout2d(input, self.p, self.training, self.inplace)


class Flatten(torch.nn.Flatten):
    def forward(self, input):
        return DF.flatten(input, self.start_dim, self.end_dim)
