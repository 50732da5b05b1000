// The continuous families of PPX. Each class knows its parameters in wire order, its one sampling algorithm (the same,
// step by step, as that of the Python package, whose docstrings name the sources) and its log density.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

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

}  // namespace etalumis
