// The messages of PPX (see schema.fbs, whose field numbers these are).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "etalumis/distribution.hpp"
#include "etalumis/wire.hpp"

namespace etalumis {

/// Members of the union MessageBody.
enum class Body : std::uint8_t {
    none,
    handshake,
    handshake_result,
    run,
    run_result,
    sample,
    sample_result,
    observe,
    observe_result,
    tag,
    tag_result,
    reset,
    error
};

/// A value as models and messages see it: numbers that somebody else owns, row-major.
struct View {
    const double* data;
    std::size_t size;
    const Shape& shape;
};

namespace wire {

inline Table body(const Table& message) {
    return message.table(1);
}
inline Body kind(const Table& message) {
    return static_cast<Body>(message.get<std::uint8_t>(0, 0));
}

/// Starts a message with this body; returns the reference to the body's table.
inline Writer::Reference begin(Writer& out, Body body) {
    Writer::Table message = out.table(out.begin(), 2);
    const auto reference = message.reference(1);
    message.put(0, static_cast<std::uint8_t>(body)).close();
    return reference;
}

inline void write_tensor(Writer& out, Writer::Reference reference, const View& value) {
    Writer::Table tensor = out.table(reference, 2);
    const auto data = tensor.reference(0), shape = tensor.reference(1);
    tensor.close();
    out.vector(data, value.data, value.size);
    out.vector(shape, value.shape);
}

inline void write_distribution(Writer& out, Writer::Reference reference, const Distribution& distribution) {
    struct Parameters final : Distribution::Visitor {
        void parameter(const double* data, std::size_t size, const Shape& shape) override {
            views.push_back({data, size, shape});
        }
        std::vector<View> views;
    } parameters;
    distribution.visit(parameters);
    Writer::Table table = out.table(reference, parameters.views.size());
    std::vector<Writer::Reference> tensors;
    for (std::size_t i = 0; i < parameters.views.size(); ++i) tensors.push_back(table.reference(i));
    table.close();
    for (std::size_t i = 0; i < tensors.size(); ++i) write_tensor(out, tensors[i], parameters.views[i]);
}

/// Which draw of a scripted execution a Sample asks for.
struct Place {
    std::uint32_t instance;
    std::uint32_t ordinal;
};

inline void write_sample(Writer& out, std::string_view address, std::string_view name, const Distribution& distribution,
                         bool control, const Place* place = nullptr) {
    Writer::Table sample = out.table(begin(out, Body::sample), 8);
    const auto address_at = sample.reference(0);
    const auto name_at = name.empty() ? 0 : sample.reference(1);
    const auto distribution_at = sample.reference(3);
    if (place != nullptr) sample.put(6, place->instance).put(7, place->ordinal);
    sample.put(2, distribution.code()).put(4, static_cast<std::uint8_t>(control)).close();
    out.string(address_at, address);
    if (!name.empty()) out.string(name_at, name);
    write_distribution(out, distribution_at, distribution);
}

inline void write_observe(Writer& out, std::string_view address, std::string_view name,
                          const Distribution& distribution, const View* value) {
    Writer::Table observe = out.table(begin(out, Body::observe), 5);
    const auto address_at = observe.reference(0);
    const auto name_at = name.empty() ? 0 : observe.reference(1);
    const auto distribution_at = observe.reference(3);
    const auto value_at = value == nullptr ? 0 : observe.reference(4);
    observe.put(2, distribution.code()).close();
    out.string(address_at, address);
    if (!name.empty()) out.string(name_at, name);
    write_distribution(out, distribution_at, distribution);
    if (value != nullptr) write_tensor(out, value_at, *value);
}

inline void write_tag(Writer& out, std::string_view address, std::string_view name, const View& value) {
    Writer::Table tag = out.table(begin(out, Body::tag), 3);
    const auto address_at = tag.reference(0);
    const auto name_at = name.empty() ? 0 : tag.reference(1);
    const auto value_at = tag.reference(2);
    tag.close();
    out.string(address_at, address);
    if (!name.empty()) out.string(name_at, name);
    write_tensor(out, value_at, value);
}

inline void write_run_result(Writer& out, const View* result) {
    Writer::Table table = out.table(begin(out, Body::run_result), 2);
    const auto result_at = result == nullptr ? 0 : table.reference(0);
    table.close();
    if (result != nullptr) write_tensor(out, result_at, *result);
}

inline void write_handshake_result(Writer& out, std::string_view model_name) {
    static const std::vector<std::string_view> capabilities{"script", "error"};
    Writer::Table table = out.table(begin(out, Body::handshake_result), 4);
    const auto system = table.reference(0), model = table.reference(1), list = table.reference(2),
               version = table.reference(3);
    table.close();
    out.string(system, "etalumis C++");
    out.string(model, model_name);
    out.strings(list, capabilities);
    out.string(version, "1.1.0");
}

inline void write_reset(Writer& out) {
    out.table(begin(out, Body::reset), 0).close();
}

inline void write_error(Writer& out, std::string_view text) {
    Writer::Table table = out.table(begin(out, Body::error), 1);
    const auto text_at = table.reference(0);
    table.close();
    out.string(text_at, text);
}

/// The value of a SampleResult for a distribution of this size.
inline std::vector<double> read_sample_result(const Table& message, std::size_t size) {
    std::vector<double> value = body(message).table(0).vector<double>(0);
    if (value.size() != size) throw ProtocolError("a SampleResult has the wrong number of values");
    return value;
}

}  // namespace wire

/// What a scripted run asks for; the fields are those of the schema's table Request.
struct Request {
    enum class Control : std::uint8_t { none, listed, all };
    struct Site {
        std::uint32_t address;  // the connection's number of the base address
        std::uint8_t family;
        std::uint32_t instance;
        std::uint32_t first = 0, size = 0;  // its values, for scripted ones
    };
    struct Given {
        std::string name;
        std::uint32_t first, size;  // its place in observe_values
    };

    std::uint64_t seed = 0, first_index = 0;
    std::uint32_t count = 1;
    std::vector<Given> observe;
    std::vector<double> observe_values;
    bool draw_observations = true, reject_zero = false;
    std::vector<Site> script;
    std::vector<double> script_values;
    Control control = Control::none;
    std::vector<Site> control_sites;
    std::string stop_at;
    std::uint32_t stop_instance = 0;
    std::uint64_t max_draws = 0;
    double max_seconds = 0.0;
    std::vector<std::string> new_addresses;
};

namespace wire {

inline std::vector<Request::Site> read_sites(const Table& table, std::size_t field) {
    const auto address = table.vector<std::uint32_t>(field);
    const auto family = table.vector<std::uint8_t>(field + 1);
    const auto instance = table.vector<std::uint32_t>(field + 2);
    if (family.size() != address.size() || instance.size() != address.size()) {
        throw ProtocolError("the columns of a request have different lengths");
    }
    std::vector<Request::Site> out;
    for (std::size_t i = 0; i < address.size(); ++i) out.push_back({address[i], family[i], instance[i]});
    return out;
}

/// Gives consecutive stretches of `total` numbers to `rows`; no sizes: one number each.
template <class Row>
void assign_sizes(std::vector<Row>& rows, const std::vector<std::uint32_t>& sizes, std::size_t total) {
    if (!sizes.empty() && sizes.size() != rows.size()) throw ProtocolError("a request has sizes for other rows");
    std::uint64_t first = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i].first = static_cast<std::uint32_t>(first);
        rows[i].size = sizes.empty() ? 1 : sizes[i];
        first += rows[i].size;
    }
    if (first != total) throw ProtocolError("the sizes of a request do not add up to its values");
}

inline Request read_request(const Table& table) {
    Request request;
    request.seed = table.get<std::uint64_t>(0, 0);
    request.first_index = table.get<std::uint64_t>(1, 0);
    request.count = table.get<std::uint32_t>(2, 1);
    if (request.count > 1u << 20) throw ProtocolError("a request is for more than a million executions");
    for (const std::string_view name : table.strings(3)) request.observe.push_back({std::string(name), 0, 0});
    request.observe_values = table.vector<double>(5);
    assign_sizes(request.observe, table.vector<std::uint32_t>(4), request.observe_values.size());
    request.draw_observations = table.get<std::uint8_t>(6, 1) != 0;
    request.reject_zero = table.get<std::uint8_t>(7, 0) != 0;
    request.script = read_sites(table, 8);
    request.script_values = table.vector<double>(12);
    assign_sizes(request.script, table.vector<std::uint32_t>(11), request.script_values.size());
    const auto control = table.get<std::uint8_t>(13, 0);
    if (control > 2) throw ProtocolError("a request has an unknown control mode");
    request.control = static_cast<Request::Control>(control);
    request.control_sites = read_sites(table, 14);
    request.stop_at = table.string(17);
    request.stop_instance = table.get<std::uint32_t>(18, 0);
    request.max_draws = table.get<std::uint64_t>(19, 0);
    request.max_seconds = table.get<double>(20, 0.0);
    for (const std::string_view address : table.strings(21)) request.new_addresses.emplace_back(address);
    return request;
}

}  // namespace wire
}  // namespace etalumis
