// Arrays of independent values of one family: `Array<Normal>(means, stddev)` with parameters that broadcast.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "etalumis/distributions.hpp"

namespace etalumis {

/// Independent elements of a scalar family; the parameters broadcast to the shape of a value.
template <class Family>
class Array final : public Distribution {
  public:
    using value_type = Tensor;

    template <class... Parameters>
    explicit Array(Parameters&&... parameters)
        : Distribution(Family::tag, Family::name), given_{Tensor(std::forward<Parameters>(parameters))...} {
        static_assert(sizeof...(Parameters) == N, "give every parameter of the family, in wire order");
        for (const Tensor& tensor : given_) {
            if (tensor.size() == 0) throw std::invalid_argument("a parameter is an empty array; give an element");
            shape_ = broadcast(shape_, tensor.shape);
        }
        for (std::size_t k = 0; k < N; ++k) packed_[k] = broadcast_to(given_[k], shape_);
        size_ = count(shape_);
    }

    const Shape& shape() const override { return shape_; }
    std::size_t size() const override { return size_; }
    void draw(const Statement& statement, double* value) const override {
        for (std::size_t i = 0; i < size_; ++i) {
            Uniforms uniform = statement.element(i);
            value[i] = element(i).draw_scalar(uniform);
        }
    }
    double log_prob(const double* value) const override {
        double total = 0.0;
        for (std::size_t i = 0; i < size_; ++i) total += element(i).log_density(value[i]);
        return total;
    }
    void visit(Visitor& visitor) const override {
        for (const Tensor& tensor : given_) visitor.parameter(tensor.data.data(), tensor.size(), tensor.shape);
    }
    void pack(std::vector<double>& out) const override {
        for (const auto& numbers : packed_) out.insert(out.end(), numbers.begin(), numbers.end());
    }

  private:
    static constexpr std::size_t N = Family::parameter_count;

    template <std::size_t... K>
    Family element(std::size_t i, std::index_sequence<K...>) const {
        return Family(packed_[K][i]...);
    }
    Family element(std::size_t i) const { return element(i, std::make_index_sequence<N>()); }

    std::array<Tensor, N> given_;                  // as the model gave them, which is what the wire carries
    std::array<std::vector<double>, N> packed_{};  // broadcast
    Shape shape_;
    std::size_t size_ = 0;
};

/// Independent categorical elements; the last axis of the weights runs over the categories.
template <>
class Array<Categorical> final : public Distribution {
  public:
    using value_type = Tensor;

    explicit Array(Tensor weights)
        : Distribution(Categorical::tag, Categorical::name), weights_(std::move(weights)), shape_(weights_.shape) {
        if (weights_.size() == 0) throw std::invalid_argument("Categorical needs at least one weight");
        const auto categories = static_cast<std::ptrdiff_t>(shape_.back());
        shape_.pop_back();
        for (auto row = weights_.data.begin(); row != weights_.data.end(); row += categories) {
            rows_.emplace_back(std::vector<double>(row, row + categories));
        }
    }

    const Shape& shape() const override { return shape_; }
    std::size_t size() const override { return rows_.size(); }
    void draw(const Statement& statement, double* value) const override {
        for (std::size_t i = 0; i < rows_.size(); ++i) {
            Uniforms uniform = statement.element(i);
            value[i] = rows_[i].draw_scalar(uniform);
        }
    }
    double log_prob(const double* value) const override {
        double total = 0.0;
        for (std::size_t i = 0; i < rows_.size(); ++i) total += rows_[i].log_density(value[i]);
        return total;
    }
    void visit(Visitor& visitor) const override {
        visitor.parameter(weights_.data.data(), weights_.size(), weights_.shape);
    }
    void pack(std::vector<double>& out) const override {
        out.insert(out.end(), weights_.data.begin(), weights_.data.end());
    }

  private:
    Tensor weights_;
    Shape shape_;
    std::vector<Categorical> rows_;
};

}  // namespace etalumis
