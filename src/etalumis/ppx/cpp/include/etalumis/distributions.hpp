// The eleven families of PPX. Each class knows its parameters in wire order, its one sampling algorithm (the same, step
// by step, as that of the Python package, whose docstrings name the sources) and its log density.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "etalumis/distribution.hpp"

namespace etalumis {

class Normal final : public Scalar<Normal, 2, double> {
  public:
    static constexpr std::uint8_t tag = 1;
    static constexpr const char* name = "Normal";
    Normal(double mean, double stddev) : Scalar(mean, stddev) {
        const bool valid = detail::finite(mean) && detail::positive(stddev);
        detail::require(valid, name, "a finite mean and a finite stddev > 0", {mean, stddev});
    }
    double draw_scalar(Uniforms& uniform) const {
        return parameters_[0] + parameters_[1] * detail::standard_normal(uniform);
    }
    double log_density(double x) const {
        const auto [mean, stddev] = parameters_;
        const double z = (x - mean) / stddev;
        return -0.5 * z * z - detail::log_sqrt_2pi - std::log(stddev);
    }
};

class Uniform final : public Scalar<Uniform, 2, double> {
  public:
    static constexpr std::uint8_t tag = 2;
    static constexpr const char* name = "Uniform";
    explicit Uniform(double low = 0.0, double high = 1.0) : Scalar(low, high) {
        detail::require(detail::positive(high - low), name, "finite low < high", {low, high});
    }
    double draw_scalar(Uniforms& uniform) const {
        const auto [low, high] = parameters_;
        return low + (high - low) * uniform();
    }
    double log_density(double x) const {
        const auto [low, high] = parameters_;
        return low <= x && x <= high ? -std::log(high - low) : detail::outside(x);
    }
};

/// Weights of any positive sum; values count from 0.
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

class Beta final : public Scalar<Beta, 2, double> {
  public:
    static constexpr std::uint8_t tag = 6;
    static constexpr const char* name = "Beta";
    Beta(double concentration1, double concentration0) : Scalar(concentration1, concentration0) {
        const bool valid = detail::positive(concentration1) && detail::positive(concentration0);
        detail::require(valid, name, "finite concentrations > 0", {concentration1, concentration0});
    }
    double draw_scalar(Uniforms& uniform) const {
        const double log_g1 = detail::log_standard_gamma(parameters_[0], uniform);
        const double t = detail::log_standard_gamma(parameters_[1], uniform) - log_g1;
        if (t > 0.0) {
            const double small = std::exp(-t);
            return std::max(small / (1.0 + small), detail::smallest);
        }
        return std::min(1.0 / (1.0 + std::exp(t)), detail::almost_one);
    }
    double log_density(double x) const {
        const auto [a, b] = parameters_;
        if (x > 0.0 && x < 1.0) {
            const double log_norm = detail::log_gamma(a + b) - detail::log_gamma(a) - detail::log_gamma(b);
            return log_norm + (a - 1.0) * std::log(x) + (b - 1.0) * std::log1p(-x);
        }
        if (x == 0.0) return a == 1.0 ? std::log(b) : std::copysign(detail::infinity, 1.0 - a);
        if (x == 1.0) return b == 1.0 ? std::log(a) : std::copysign(detail::infinity, 1.0 - b);
        return detail::outside(x);
    }
};

class Exponential final : public Scalar<Exponential, 1, double> {
  public:
    static constexpr std::uint8_t tag = 7;
    static constexpr const char* name = "Exponential";
    explicit Exponential(double rate) : Scalar(rate) {
        detail::require(detail::positive(rate), name, "a finite rate > 0", {rate});
    }
    double draw_scalar(Uniforms& uniform) const { return -std::log(uniform()) / parameters_[0]; }
    double log_density(double x) const {
        const double rate = parameters_[0];
        return x >= 0.0 ? std::log(rate) - rate * x : detail::outside(x);
    }
};

class Gamma final : public Scalar<Gamma, 2, double> {
  public:
    static constexpr std::uint8_t tag = 8;
    static constexpr const char* name = "Gamma";
    Gamma(double concentration, double rate) : Scalar(concentration, rate) {
        const bool valid = detail::positive(concentration) && detail::positive(rate);
        detail::require(valid, name, "finite concentration > 0 and rate > 0", {concentration, rate});
    }
    double draw_scalar(Uniforms& uniform) const {
        const auto [k, rate] = parameters_;
        return detail::positive_exp(detail::log_standard_gamma(k, uniform) - std::log(rate));
    }
    double log_density(double x) const {
        const auto [k, rate] = parameters_;
        if (detail::positive(x)) {
            return k * std::log(rate) + (k - 1.0) * std::log(x) - rate * x - detail::log_gamma(k);
        }
        if (x == 0.0) return k == 1.0 ? std::log(rate) : std::copysign(detail::infinity, 1.0 - k);
        return detail::outside(x);
    }
};

class LogNormal final : public Scalar<LogNormal, 2, double> {
  public:
    static constexpr std::uint8_t tag = 9;
    static constexpr const char* name = "LogNormal";
    LogNormal(double loc, double scale) : Scalar(loc, scale) {
        const bool valid = detail::finite(loc) && detail::positive(scale);
        detail::require(valid, name, "a finite loc and a finite scale > 0", {loc, scale});
    }
    double draw_scalar(Uniforms& uniform) const {
        return detail::positive_exp(parameters_[0] + parameters_[1] * detail::standard_normal(uniform));
    }
    double log_density(double x) const {
        const auto [loc, scale] = parameters_;
        if (!detail::positive(x)) return detail::outside(x);
        const double t = std::log(x);
        const double z = (t - loc) / scale;
        return -0.5 * z * z - detail::log_sqrt_2pi - std::log(scale) - t;
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

class Weibull final : public Scalar<Weibull, 2, double> {
  public:
    static constexpr std::uint8_t tag = 11;
    static constexpr const char* name = "Weibull";
    Weibull(double scale, double concentration) : Scalar(scale, concentration) {
        const bool valid = detail::positive(scale) && detail::positive(concentration);
        detail::require(valid, name, "finite scale > 0 and concentration > 0", {scale, concentration});
    }
    double draw_scalar(Uniforms& uniform) const {
        const auto [scale, k] = parameters_;
        return detail::positive_exp(std::log(-std::log(uniform())) / k + std::log(scale));
    }
    double log_density(double x) const {
        const auto [scale, k] = parameters_;
        if (detail::positive(x)) {
            const double t = std::log(x) - std::log(scale);
            const double exponent = k * t;
            if (exponent > 700.0) return -detail::infinity;
            return std::log(k / scale) + (k - 1.0) * t - std::exp(exponent);
        }
        if (x == 0.0) return k == 1.0 ? -std::log(scale) : std::copysign(detail::infinity, 1.0 - k);
        return detail::outside(x);
    }
};

/// Calls `use` with a null pointer to the family of this number on the wire.
template <class Use>
void with_family(int tag, Use&& use) {
    const auto choose = [&](auto*... families) {
        return ((std::remove_pointer_t<decltype(families)>::tag == tag && (use(families), true)) || ...);
    };
    const bool known =
        choose(static_cast<Normal*>(nullptr), static_cast<Uniform*>(nullptr), static_cast<Categorical*>(nullptr),
               static_cast<Poisson*>(nullptr), static_cast<Bernoulli*>(nullptr), static_cast<Beta*>(nullptr),
               static_cast<Exponential*>(nullptr), static_cast<Gamma*>(nullptr), static_cast<LogNormal*>(nullptr),
               static_cast<Binomial*>(nullptr), static_cast<Weibull*>(nullptr));
    if (!known) throw std::invalid_argument("no family has the number " + std::to_string(tag));
}

}  // namespace etalumis
