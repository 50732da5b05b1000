// Arrays of numbers as PPX sends them: row-major doubles with a shape; a scalar has the shape ().
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <utility>
#include <vector>

namespace etalumis {

using Shape = std::vector<int>;

/// How many elements a shape holds.
inline std::size_t count(const Shape& shape) {
    std::size_t total = 1;
    for (const int extent : shape) total *= static_cast<std::size_t>(extent);
    return total;
}

/// An array of numbers; a number converts to a tensor of the shape ().
struct Tensor {
    std::vector<double> data;
    Shape shape;

    Tensor() = default;
    Tensor(double number) : data{number} {}  // NOLINT: numbers are tensors
    Tensor(std::vector<double> numbers) : data(std::move(numbers)), shape{static_cast<int>(data.size())} {}  // NOLINT
    Tensor(std::initializer_list<double> numbers) : Tensor(std::vector<double>(numbers)) {}
    Tensor(std::vector<double> numbers, Shape extents) : data(std::move(numbers)), shape(std::move(extents)) {
        if (data.size() != count(shape))
            throw std::invalid_argument("a tensor needs as many numbers as its shape holds");
    }

    std::size_t size() const { return data.size(); }
    double operator[](std::size_t i) const { return data[i]; }
    double& operator[](std::size_t i) { return data[i]; }
};

/// The shape that two shapes broadcast to, as NumPy does.
inline Shape broadcast(const Shape& a, const Shape& b) {
    Shape out(std::max(a.size(), b.size()), 1);
    for (std::size_t k = 0; k < out.size(); ++k) {
        const int x = k < a.size() ? a[a.size() - 1 - k] : 1;
        const int y = k < b.size() ? b[b.size() - 1 - k] : 1;
        if (x != y && x != 1 && y != 1) throw std::invalid_argument("parameters have shapes that do not broadcast");
        out[out.size() - 1 - k] = x == 1 ? y : x;
    }
    return out;
}

/// The numbers of `tensor` repeated to fill `shape`, row-major.
inline std::vector<double> broadcast_to(const Tensor& tensor, const Shape& shape) {
    const std::size_t total = count(shape);
    if (tensor.shape == shape) return tensor.data;
    if (tensor.size() == 1) return std::vector<double>(total, tensor.data[0]);
    const std::size_t missing = shape.size() - tensor.shape.size();
    std::vector<double> out(total);
    for (std::size_t i = 0; i < total; ++i) {
        std::size_t rest = i, place = 0, stride = 1;
        for (std::size_t axis = shape.size(); axis-- > missing;) {
            const auto extent = static_cast<std::size_t>(shape[axis]);
            const auto own = static_cast<std::size_t>(tensor.shape[axis - missing]);
            if (own != 1) place += rest % extent * stride;
            rest /= extent;
            stride *= own;
        }
        out[i] = tensor.data[place];
    }
    return out;
}

}  // namespace etalumis
