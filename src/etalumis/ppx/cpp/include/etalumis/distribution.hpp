// What a distribution is to the statements, and what its families have in common.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "etalumis/philox.hpp"
#include "etalumis/tensor.hpp"

namespace etalumis {

/// What statements need of a distribution: a value is `size()` numbers of the shape `shape()`.
class Distribution {
  public:
    Distribution(std::uint8_t code, const char* family) : code_(code), family_(family) {}
    virtual ~Distribution() = default;

    std::uint8_t code() const { return code_; }  ///< the family's number on the wire
    const char* family() const { return family_; }

    virtual const Shape& shape() const = 0;
    virtual std::size_t size() const = 0;
    virtual void draw(const Statement& statement, double* value) const = 0;
    virtual double log_prob(const double* value) const = 0;

    /// Calls `visit(data, shape)` for each parameter in wire order.
    struct Visitor {
        virtual void parameter(const double* data, std::size_t size, const Shape& shape) = 0;

      protected:
        ~Visitor() = default;
    };
    virtual void visit(Visitor& visitor) const = 0;
    /// Appends the parameters, each broadcast to `shape()`, one after the other.
    virtual void pack(std::vector<double>& out) const = 0;

  protected:
    Distribution(const Distribution&) = default;
    Distribution& operator=(const Distribution&) = default;

  private:
    std::uint8_t code_;
    const char* family_;
};

namespace detail {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double smallest = std::numeric_limits<double>::min();  // draws on (0, ∞) never round to 0
constexpr double largest = std::numeric_limits<double>::max();
constexpr double almost_one = 1.0 - 0x1p-53;  // draws on (0, 1) never round to 1
constexpr double pi = 3.141592653589793;
constexpr double log_sqrt_2pi = 0.9189385332046727;

inline double log_gamma(double x) {
    int sign = 0;
    return ::lgamma_r(x, &sign);  // std::lgamma writes a global variable
}

inline double positive_exp(double t) {
    static const double low = std::log(smallest), high = std::log(largest);
    if (t <= low) return smallest;
    return t >= high ? largest : std::exp(t);
}

/// Two uniforms; Box and Muller (1958).
inline double standard_normal(Uniforms& uniform) {
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    return radius * std::cos(2.0 * pi * uniform());
}

/// log of a Gamma(concentration, 1) draw; Marsaglia and Tsang (2000), three uniforms a try.
inline double log_standard_gamma(double concentration, Uniforms& uniform) {
    const double d = (concentration >= 1.0 ? concentration : concentration + 1.0) - 1.0 / 3.0;
    const double c = 1.0 / std::sqrt(9.0 * d);
    double log_v = 0.0;
    while (true) {
        const double x = standard_normal(uniform);
        const double u = uniform();
        const double root = 1.0 + c * x;
        if (root <= 0.0) continue;
        log_v = 3.0 * std::log(root);
        if (std::log(u) < 0.5 * x * x + d - d * root * root * root + d * log_v) break;
    }
    double log_draw = std::log(d) + log_v;
    if (concentration < 1.0) log_draw += std::log(uniform()) / concentration;
    return log_draw;
}

inline bool finite(double x) {
    return std::abs(x) < infinity;
}
inline bool positive(double x) {
    return x > 0.0 && x < infinity;
}
inline bool whole(double x) {
    return std::floor(x) == x && finite(x);
}
inline double outside(double x) {
    return x != x ? not_a_number : -infinity;
}

inline void require(bool condition, const char* family, const char* requirement, std::initializer_list<double> got) {
    if (condition) return;
    std::ostringstream text;
    text << family << " needs " << requirement << "; got";
    for (const double number : got) text << ' ' << number;
    throw std::invalid_argument(text.str());
}

inline const Shape no_shape{};

}  // namespace detail

/// A scalar distribution with N parameters. `Family` adds its `tag` on the wire, its `name`, `draw_scalar` and
/// `log_density`; `Number` is what the model gets.
template <class Family, std::size_t N, class Number>
class Scalar : public Distribution {
  public:
    using value_type = Number;
    static constexpr std::size_t parameter_count = N;

    const Shape& shape() const final { return detail::no_shape; }
    std::size_t size() const final { return 1; }
    void draw(const Statement& statement, double* value) const final {
        Uniforms uniform = statement.scalar();
        *value = static_cast<const Family&>(*this).draw_scalar(uniform);
    }
    double log_prob(const double* value) const final { return static_cast<const Family&>(*this).log_density(*value); }
    void visit(Visitor& visitor) const final {
        for (const double& number : parameters_) visitor.parameter(&number, 1, detail::no_shape);
    }
    void pack(std::vector<double>& out) const final { out.insert(out.end(), parameters_.begin(), parameters_.end()); }

  protected:
    template <class... Parameters>
    explicit Scalar(Parameters... parameters) : Distribution(Family::tag, Family::name), parameters_{parameters...} {}
    std::array<double, N> parameters_;
};

}  // namespace etalumis
