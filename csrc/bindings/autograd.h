// How a call of an op is recorded: one node of PyTorch's graph per call, made as PyTorch's generated code makes its
// own. torch::autograd::Function would do, but takes 1 to 2 microseconds more per call, of which a small layer notices.
//
// An op has a `Gradient`:
//
//     static Result forward(Recording* call, arguments...);                      // runs the op below autograd, saves
//     static variable_list backward(Recording* call, const Tensor& dy);          // gradients of the first arguments
//
// Of several outputs the first is differentiable, the others are what backward needs.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <any>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace dlk::bindings {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::Node;
using torch::autograd::variable_list;

/// c10::intrusive_ptr<Node>, or in older releases of torch std::shared_ptr<Node>.
using NodePointer = decltype(torch::autograd::Edge::function);

/// Whether gradients must themselves be differentiable here: the backward pass runs under create_graph=True.
inline bool create_graph() { return at::GradMode::is_enabled(); }

/// The node of a call, and what it keeps for backward.
class Recording : public Node {
 public:
  /// Keeps tensors, among them the op's output; at most one call per forward.
  void save_for_backward(std::initializer_list<Tensor> tensors) { to_save_ = tensors; }
  /// Keeps what is no tensor.
  template <class... Values>
  void save_values(const Values&... values) {
    values_ = std::tuple<Kept<Values>...>(keep(values)...);
  }

  /// Raises if one was changed in place since, or if an earlier backward pass has freed them.
  variable_list saved_tensors() {
    variable_list tensors;
    tensors.reserve(saved_.size());
    for (const auto& tensor : saved_) tensors.push_back(tensor.unpack(getptr()));
    return tensors;
  }
  template <class... Values>
  const std::tuple<Values...>& saved_values() const {
    return *std::any_cast<std::tuple<Values...>>(&values_);
  }
  /// Whether this backward pass needs the gradient of an argument, counted from 0.
  bool needs_gradient(size_t argument) const { return task_should_compute_output(argument); }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& tensor : saved_) tensor.reset_data();
  }

 protected:
  /// After the forward pass, when the output knows its node. `in_place`: the output is the first argument.
  void keep_tensors(const Tensor& output, bool in_place) {
    saved_.reserve(to_save_.size());
    for (const Tensor& tensor : to_save_) {
      const bool is_output = tensor.is_same(output);
      saved_.emplace_back(tensor, is_output, is_output && in_place && tensor.is_view());
    }
    to_save_.clear();
  }

 private:
  template <class Value>
  using Kept = std::conditional_t<std::is_same_v<Value, at::IntArrayRef>, std::vector<int64_t>, Value>;
  template <class Value>
  static Kept<Value> keep(const Value& value) {
    if constexpr (std::is_same_v<Value, at::IntArrayRef>)
      return value.vec();
    else
      return value;
  }

  variable_list to_save_;
  std::vector<torch::autograd::SavedVariable> saved_;
  std::any values_;
};

/// The node of an op with this Gradient and as many arguments.
template <class Gradient, size_t arguments>
class Recorded final : public Recording {
 public:
  /// Runs Gradient::forward and records it. in_place: the op changes its first argument, which is its output.
  template <bool in_place, class... Arguments>
  static auto run(Arguments&&... args) {
    const auto [node, pointer] = make();
    node->set_next_edges(torch::autograd::edge_list{edge(args)...});
    auto outputs = [&] {
      const at::AutoDispatchBelowADInplaceOrView below;
      return Gradient::forward(node, args...);
    }();
    const Tensor& output = first(outputs);
    if constexpr (in_place) {
      torch::autograd::impl::bump_version(output);
      const auto output_nr = node->add_input_metadata(output);
      torch::autograd::impl::rebase_history(output, {pointer, output_nr});
    } else {
      torch::autograd::set_history(output, pointer);
    }
    node->keep_tensors(output, in_place);
    return outputs;
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list gradients;
    if (grads[0].defined()) gradients = Gradient::backward(this, grads[0]);
    gradients.resize(arguments);
    return gradients;
  }

 private:
  static std::pair<Recorded*, NodePointer> make() {
    if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
      const auto node = new Recorded;
      return {node, NodePointer(node, [](auto* n) { deleteNode(n); })};  // torch::autograd::deleteNode
    } else {
      auto node = c10::make_intrusive<Recorded>();
      return {node.get(), std::move(node)};
    }
  }

  /// Where the gradient of an argument goes: nowhere unless it is a tensor that requires it.
  template <class A>
  static torch::autograd::Edge edge(const A& argument) {
    if constexpr (std::is_same_v<A, Tensor>)
      return argument.defined() ? torch::autograd::impl::gradient_edge(argument) : torch::autograd::Edge();
    else if constexpr (std::is_same_v<A, OptionalTensor>)
      return argument.has_value() ? edge(*argument) : torch::autograd::Edge();
    else
      return {};
  }

  static const Tensor& first(const Tensor& output) { return output; }
  template <class... Outputs>
  static const Tensor& first(const std::tuple<Outputs...>& outputs) {
    return std::get<0>(outputs);
  }
};

/// Whether autograd records a call with these arguments.
template <class... Arguments>
bool recorded(const Arguments&... arguments) {
  const auto requires_grad = []<class A>(const A& argument) {
    if constexpr (std::is_same_v<A, Tensor>) return argument.requires_grad();
    if constexpr (std::is_same_v<A, OptionalTensor>) return argument.has_value() && argument->requires_grad();
    return false;
  };
  return at::GradMode::is_enabled() && (requires_grad(arguments) || ...);
}

/// Raises what PyTorch raises for a tensor that must not change in place (a leaf that requires grad, some views),
/// before anything is written.
void check_inplace(const Tensor& x);

/// The autograd kernel of the op that `fn` implements. A call that is not recorded goes to the next kernel at once.
template <auto fn, auto op, class Gradient>
struct Autograd;
template <class Result, class... Arguments, Result (*fn)(Arguments...), auto op, class Gradient>
struct Autograd<fn, op, Gradient> {
  static Result call(Arguments... arguments) {
    if (recorded(arguments...)) return Recorded<Gradient, sizeof...(Arguments)>::template run<false>(arguments...);
    const at::AutoDispatchBelowAutograd below;
    return op().call(arguments...);
  }
};

/// Likewise for an op that changes its first argument.
template <auto fn, auto op, class Gradient>
struct InplaceAutograd;
template <class... Arguments, Tensor& (*fn)(Tensor&, Arguments...), auto op, class Gradient>
struct InplaceAutograd<fn, op, Gradient> {
  static Tensor& call(Tensor& x, Arguments... arguments) {
    check_inplace(x);
    if (recorded(x, arguments...)) {
      Recorded<Gradient, 1 + sizeof...(Arguments)>::template run<true>(x, arguments...);
      return x;
    }
    const at::AutoDispatchBelowAutograd below;
    return op().call(x, arguments...);
  }

  /// The kernel that follows, and in inference mode the first: it counts the change for those who have saved x. (Of a
  /// recorded call, the node counts it.)
  static Tensor& counted(Tensor& x, Arguments... arguments) {
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      op().call(x, arguments...);
    }
    torch::autograd::impl::bump_version(x);
    return x;
  }
};

}  // namespace dlk::bindings
