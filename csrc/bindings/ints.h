// From Python to Ints. In Python it took three arguments of pooling a fifth of the time of a call on a small tensor.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "csrc/bindings/ops.h"

template <>
struct pybind11::detail::type_caster<dlk::bindings::Ints> {
  PYBIND11_TYPE_CASTER(dlk::bindings::Ints, const_name("int or tuple of ints"));

  bool load(handle from, bool) {
    if (add(from))
      value.values.push_back(value.values.front());
    else if (!add_each(from))
      value.wrong = repr(from);
    return true;
  }

 private:
  /// An int, or what Python takes for one: NumPy's integers, tensors of one.
  bool add(handle from) {
    if (!PyIndex_Check(from.ptr())) return false;
    const object index = reinterpret_steal<object>(PyNumber_Index(from.ptr()));
    const int64_t number = index ? PyLong_AsLongLong(index.ptr()) : -1;
    if (number == -1 && PyErr_Occurred()) {
      if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw error_already_set();
      PyErr_Clear();
      return false;
    }
    value.values.push_back(number);
    return true;
  }

  bool add_each(handle from) {
    if (!PyTuple_Check(from.ptr()) && !PyList_Check(from.ptr())) return false;
    for (const handle item : reinterpret_borrow<object>(from))
      if (!PyLong_Check(item.ptr()) || !add(item)) return false;
    return true;
  }
};
