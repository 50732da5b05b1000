// What scripted executions send back: everything that was said in them, in columns (the schema's table Columns).
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "etalumis/distribution.hpp"
#include "etalumis/hash_index.hpp"
#include "etalumis/messages.hpp"

namespace etalumis {

/// How an execution ended.
enum class End : std::uint8_t { finished, rejected, stopped, exhausted, failed };

/// The distinct distributions of a batch, each a row: a family and its packed parameters.
class DistributionTable {
  public:
    static constexpr std::uint32_t none = detail::HashIndex::none;

    void clear() {
        index_.clear();
        codes.clear(), parameter_sizes.clear(), parameters.clear(), ranks.clear(), shapes.clear();
        starts_.clear(), shape_starts_.clear();
    }
    /// The row of a distribution; `guess` is a row that it probably has.
    std::uint32_t row(const Distribution& distribution, std::uint32_t guess) {
        packed_.clear();
        distribution.pack(packed_);
        if (guess != none && equal(guess, distribution)) return guess;
        const std::uint64_t hash =
            detail::hash_bytes(packed_.data(), packed_.size() * sizeof(double), distribution.code());
        const std::uint32_t known = index_.find(hash, [&](std::uint32_t row) { return equal(row, distribution); });
        if (known != none) return known;
        const auto made = static_cast<std::uint32_t>(codes.size());
        index_.insert(hash, made);
        starts_.push_back(parameters.size());
        shape_starts_.push_back(shapes.size());
        codes.push_back(distribution.code());
        parameter_sizes.push_back(static_cast<std::uint32_t>(packed_.size()));
        parameters.insert(parameters.end(), packed_.begin(), packed_.end());
        ranks.push_back(static_cast<std::uint8_t>(distribution.shape().size()));
        for (const int extent : distribution.shape()) shapes.push_back(static_cast<std::uint32_t>(extent));
        return made;
    }

    std::vector<std::uint8_t> codes;
    std::vector<std::uint32_t> parameter_sizes;
    std::vector<double> parameters;
    std::vector<std::uint8_t> ranks;
    std::vector<std::uint32_t> shapes;

  private:
    bool equal(std::uint32_t row, const Distribution& distribution) const {
        const Shape& shape = distribution.shape();
        if (codes[row] != distribution.code() || parameter_sizes[row] != packed_.size() || ranks[row] != shape.size() ||
            std::memcmp(&parameters[starts_[row]], packed_.data(), packed_.size() * sizeof(double)) != 0) {
            return false;
        }
        for (std::size_t k = 0; k < shape.size(); ++k) {
            if (shapes[shape_starts_[row] + k] != static_cast<std::uint32_t>(shape[k])) return false;
        }
        return true;
    }
    detail::HashIndex index_;
    std::vector<std::size_t> starts_, shape_starts_;
    std::vector<double> packed_;
};

/// Columns that draws and observes share.
struct StatementColumns {
    std::vector<std::uint32_t> lengths, address, instance, name, distribution, sizes;
    std::vector<double> values, log_prob;
    bool ragged = false;  // some value is not one number

    void clear() {
        lengths.clear(), address.clear(), instance.clear(), name.clear(), distribution.clear(), sizes.clear();
        values.clear(), log_prob.clear();
        ragged = false;
    }
    void add_value(const double* value, std::size_t size) {
        ragged = ragged || size != 1;
        sizes.push_back(static_cast<std::uint32_t>(size));
        values.insert(values.end(), value, value + size);
    }
};

/// Tags, or results: values of any shape.
struct ValueColumns {
    std::vector<std::uint32_t> lengths, address, instance, name, shapes;
    std::vector<std::uint8_t> ranks;
    std::vector<double> values;

    void clear() {
        lengths.clear(), address.clear(), instance.clear(), name.clear(), shapes.clear();
        ranks.clear(), values.clear();
    }
    void add(const View& value) {
        ranks.push_back(static_cast<std::uint8_t>(value.shape.size()));
        for (const int extent : value.shape) shapes.push_back(static_cast<std::uint32_t>(extent));
        values.insert(values.end(), value.data, value.data + value.size);
    }
    void write(wire::Writer& out, wire::Writer::Reference reference) const {
        wire::Writer::Table table = out.table(reference, 7);
        std::size_t at[7];
        for (std::size_t field = 0; field < 7; ++field) at[field] = table.reference(field);
        table.close();
        out.vector(at[0], lengths);
        out.vector(at[1], address);
        out.vector(at[2], instance);
        out.vector(at[3], name);
        out.vector(at[4], ranks);
        out.vector(at[5], shapes);
        out.vector(at[6], values);
    }
};

struct Columns {
    DistributionTable distributions;
    StatementColumns draws;
    std::vector<std::uint8_t> control, conditioned;  // of each draw
    StatementColumns observes;
    std::vector<std::uint8_t> observed;  // of each observe: its value was given
    ValueColumns tags, results;
    std::vector<double> log_likelihood;
    std::vector<std::uint8_t> ended;
    std::string error;

    /// Ready for the next batch; memory is kept.
    void clear() {
        distributions.clear(), draws.clear(), control.clear(), conditioned.clear(), observes.clear(), observed.clear();
        tags.clear(), results.clear(), log_likelihood.clear(), ended.clear(), error.clear();
    }

    /// A RunResult with these columns, and the addresses and names that are new in them.
    void write(wire::Writer& out, const std::vector<std::string>& new_addresses,
               const std::vector<std::string>& new_names) const {
        wire::Writer::Table result = out.table(begin(out, Body::run_result), 2);
        const auto columns_at = result.reference(1);
        result.close();
        wire::Writer::Table table = out.table(columns_at, 24);
        std::size_t at[24];
        for (std::size_t field = 0; field < 24; ++field) {
            const bool absent = field == log_q_field || (field == sizes_field && !draws.ragged) ||
                                (field == error_field && error.empty());
            at[field] = absent ? 0 : table.reference(field);
        }
        table.close();
        out.strings(at[0], new_addresses);
        out.strings(at[1], new_names);
        out.vector(at[2], distributions.codes);
        out.vector(at[3], distributions.parameter_sizes);
        out.vector(at[4], distributions.parameters);
        out.vector(at[5], distributions.ranks);
        out.vector(at[6], distributions.shapes);
        out.vector(at[7], draws.lengths);
        out.vector(at[8], draws.address);
        out.vector(at[9], draws.instance);
        out.vector(at[10], draws.name);
        out.vector(at[11], draws.distribution);
        out.vector(at[12], control);
        out.vector(at[13], conditioned);
        if (at[sizes_field] != 0) out.vector(at[sizes_field], draws.sizes);
        out.vector(at[15], draws.values);
        out.vector(at[16], draws.log_prob);
        write_observes(out, at[18]);
        tags.write(out, at[19]);
        results.write(out, at[20]);
        out.vector(at[21], log_likelihood);
        out.vector(at[22], ended);
        if (at[error_field] != 0) out.string(at[error_field], error);
    }

  private:
    static constexpr std::size_t sizes_field = 14, log_q_field = 17, error_field = 23;

    void write_observes(wire::Writer& out, wire::Writer::Reference reference) const {
        wire::Writer::Table table = out.table(reference, 9);
        std::size_t at[9];
        for (std::size_t field = 0; field < 9; ++field) {
            at[field] = field == 5 && !observes.ragged ? 0 : table.reference(field);
        }
        table.close();
        out.vector(at[0], observes.lengths);
        out.vector(at[1], observes.address);
        out.vector(at[2], observes.instance);
        out.vector(at[3], observes.name);
        out.vector(at[4], observes.distribution);
        if (at[5] != 0) out.vector(at[5], observes.sizes);
        out.vector(at[6], observes.values);
        out.vector(at[7], observed);
        out.vector(at[8], observes.log_prob);
    }
};

}  // namespace etalumis
