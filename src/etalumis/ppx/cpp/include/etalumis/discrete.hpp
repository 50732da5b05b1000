// The discrete families of PPX. Each class knows its parameters in wire order, its one sampling algorithm (the same,
// step by step, as that of the Python package, whose docstrings name the sources) and its log density.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "etalumis/distribution.hpp"

namespace etalumis {

class Categorical final : public Distribution {
  public:
    static constexpr std::uint8_t tag = 3;
    static constexpr const char* name = "Categorical";
    using value_type = std::int64_t;
    explicit Categorical(std::vector<double> weights)
        : Distribution(tag, name), weights_(std::move(weights)), axis_{static_cast<int>(weights_.size())} {
        bool valid = true;
        for (const double weight : weights_) {
            total_ += weight;
            valid = valid && weight >= 0.0;
        }
        detail::require(valid && detail::positive(total_), name, "weights ≥ 0 with a positive finite sum", {total_});
    }
    Categorical(std::initializer_list<double> weights) : Categorical(std::vector<double>(weights)) {}

    const Shape& shape() const override { return detail::no_shape; }
    std::size_t size() const override { return 1; }
    void draw(const Statement& statement, double* value) const override {
        Uniforms uniform = statement.scalar();
        *value = draw_scalar(uniform);
    }
    double log_prob(const double* value) const override { return log_density(*value); }
    void visit(Visitor& visitor) const override { visitor.parameter(weights_.data(), weights_.size(), axis_); }
    void pack(std::vector<double>& out) const override { out.insert(out.end(), weights_.begin(), weights_.end()); }

    double draw_scalar(Uniforms& uniform) const {
        const double threshold = uniform() * total_;
        double running = 0.0;
        std::size_t last = 0;  // the last category of positive weight, for a product that rounds up to the total
        for (std::size_t k = 0; k < weights_.size(); ++k) {
            running += weights_[k];
            if (running > threshold) return static_cast<double>(k);
            if (weights_[k] > 0.0) last = k;
        }
        return static_cast<double>(last);
    }
    double log_density(double x) const {
        if (!(x >= 0.0 && x < static_cast<double>(weights_.size()) && detail::whole(x))) return detail::outside(x);
        const double weight = weights_[static_cast<std::size_t>(x)];
        return weight > 0.0 ? std::log(weight / total_) : -detail::infinity;
    }

  private:
    std::vector<double> weights_;
    Shape axis_;
    double total_ = 0.0;
};

class Poisson final : public Scalar<Poisson, 1, std::int64_t> {
  public:
    static constexpr std::uint8_t tag = 4;
    static constexpr const char* name = "Poisson";
    explicit Poisson(double rate) : Scalar(rate) {
        detail::require(rate >= 0.0 && detail::finite(rate), name, "a finite rate ≥ 0", {rate});
    }
    double draw_scalar(Uniforms& uniform) const {
        return parameters_[0] < 10.0 ? search(parameters_[0], uniform) : ptrs(parameters_[0], uniform);
    }
    double log_density(double x) const {
        const double rate = parameters_[0];
        if (x == 0.0) return -rate;
        if (!(x > 0.0 && detail::whole(x))) return detail::outside(x);
        return rate == 0.0 ? -detail::infinity : x * std::log(rate) - rate - detail::log_gamma(x + 1.0);
    }

  private:
    static double search(double rate, Uniforms& uniform) {
        const double u = uniform();
        double term = std::exp(-rate), total = term, k = 0.0;
        while (u > total) {
            k += 1.0;
            term *= rate / k;
            if (total + term == total) break;  // the sum has converged just below u
            total += term;
        }
        return k;
    }
    /// Transformed rejection, Hörmann (1993): two uniforms a try.
    static double ptrs(double rate, Uniforms& uniform) {
        const double log_rate = std::log(rate);
        const double b = 0.931 + 2.53 * std::sqrt(rate);
        const double a = -0.059 + 0.02483 * b;
        const double log_inverse_alpha = std::log(1.1239 + 1.1328 / (b - 3.4));
        const double v_r = 0.9277 - 3.6224 / (b - 2.0);
        while (true) {
            const double u = uniform() - 0.5;
            const double v = uniform();
            const double us = 0.5 - std::abs(u);
            const double k = std::floor((2.0 * a / us + b) * u + rate + 0.43);
            if (us >= 0.07 && v <= v_r) return k;
            if (k < 0.0 || (us < 0.013 && v > us)) continue;
            const double log_bound = k * log_rate - rate - detail::log_gamma(k + 1.0);
            if (std::log(v) + log_inverse_alpha - std::log(a / (us * us) + b) <= log_bound) return k;
        }
    }
};

class Bernoulli final : public Scalar<Bernoulli, 1, std::int64_t> {
  public:
    static constexpr std::uint8_t tag = 5;
    static constexpr const char* name = "Bernoulli";
    explicit Bernoulli(double probs) : Scalar(probs) {
        detail::require(probs >= 0.0 && probs <= 1.0, name, "0 ≤ probs ≤ 1", {probs});
    }
    double draw_scalar(Uniforms& uniform) const { return uniform() < parameters_[0] ? 1.0 : 0.0; }
    double log_density(double x) const {
        const double p = parameters_[0];
        if (x == 1.0) return p > 0.0 ? std::log(p) : -detail::infinity;
        if (x == 0.0) return p < 1.0 ? std::log1p(-p) : -detail::infinity;
        return detail::outside(x);
    }
};

class Binomial final : public Scalar<Binomial, 2, std::int64_t> {
  public:
    static constexpr std::uint8_t tag = 10;
    static constexpr const char* name = "Binomial";
    Binomial(double total_count, double probs) : Scalar(total_count, probs) {
        const bool valid = total_count >= 0.0 && detail::whole(total_count) && probs >= 0.0 && probs <= 1.0;
        detail::require(valid, name, "a whole number total_count ≥ 0 and 0 ≤ probs ≤ 1", {total_count, probs});
    }
    double draw_scalar(Uniforms& uniform) const {
        const auto [n, probs] = parameters_;
        const double p = std::min(probs, 1.0 - probs);
        const double k = n * p < 10.0 ? search(n, p, uniform) : btrs(n, p, uniform);
        return probs <= 0.5 ? k : n - k;
    }
    double log_density(double x) const {
        const auto [n, p] = parameters_;
        if (!(x >= 0.0 && x <= n && detail::whole(x))) return detail::outside(x);
        if (p == 0.0 || p == 1.0) return x == n * p ? 0.0 : -detail::infinity;
        const double ways = detail::log_gamma(n + 1.0) - detail::log_gamma(x + 1.0) - detail::log_gamma(n - x + 1.0);
        return ways + x * std::log(p) + (n - x) * std::log1p(-p);
    }

  private:
    static double search(double n, double p, Uniforms& uniform) {
        const double u = uniform();
        const double odds = p / (1.0 - p);
        double term = std::exp(n * std::log1p(-p)), total = term, k = 0.0;
        while (u > total && k < n) {
            k += 1.0;
            term *= odds * (n - k + 1.0) / k;
            if (total + term == total) break;  // the sum has converged just below u
            total += term;
        }
        return k;
    }
    /// Transformed rejection, Hörmann (1993): two uniforms a try.
    static double btrs(double n, double p, Uniforms& uniform) {
        const double stddev = std::sqrt(n * p * (1.0 - p));
        const double b = 1.15 + 2.53 * stddev;
        const double a = -0.0873 + 0.0248 * b + 0.01 * p;
        const double alpha = (2.83 + 5.1 / b) * stddev;
        const double v_r = 0.92 - 4.2 / b;
        const double log_odds = std::log(p / (1.0 - p));
        const double mode = std::floor((n + 1.0) * p);
        const double log_peak = detail::log_gamma(mode + 1.0) + detail::log_gamma(n - mode + 1.0);
        while (true) {
            const double u = uniform() - 0.5;
            const double v = uniform();
            const double us = 0.5 - std::abs(u);
            const double k = std::floor((2.0 * a / us + b) * u + n * p + 0.5);
            if (us >= 0.07 && v <= v_r) return k;
            if (k < 0.0 || k > n) continue;
            const double log_bound =
                log_peak - detail::log_gamma(k + 1.0) - detail::log_gamma(n - k + 1.0) + (k - mode) * log_odds;
            if (std::log(v * alpha / (a / (us * us) + b)) <= log_bound) return k;
        }
    }
};

}  // namespace etalumis
