"""Normalisation layers."""

import torch

from dlkernels import functional as DF


class _BatchNorm:
    """torch.nn's bookkeeping of running statistics, in front of our kernels."""

    def forward(self, input):
        return self.forward_then(None, input)

    def forward_then(self, activation, input):
        """`forward`, and an activation that `functional._batch_norm_then` knows: for Sequential."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        # In training mode the statistics are the batch's; buffers are updated only if they are tracked. In eval mode
        # they are the buffers', or the batch's where there are none.
        use_batch = self.training or (self.running_mean is None and self.running_var is None)
        use_buffers = not self.training or self.track_running_stats
        return DF._batch_norm_then(
            activation,
            input,
            self.running_mean if use_buffers else None,
            self.running_var if use_buffers else None,
            self.weight,
            self.bias,
            use_batch,
            momentum,
            self.eps,
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    pass


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    pass


class InstanceNorm2d(torch.nn.InstanceNorm2d):
    def _apply_instance_norm(self, input):
        return DF.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
        )


class LayerNorm(torch.nn.LayerNorm):
    def forward(self, input):
        return DF.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class GroupNorm(torch.nn.GroupNorm):
    def forward(self, input):
        return DF.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
