// Scripted runs: many executions for one request of the engine, answered from the request's values, from the prior by
// the counter stream, and only where the request says so by the engine.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "etalumis/columns.hpp"
#include "etalumis/execution.hpp"
#include "etalumis/hash_index.hpp"
#include "etalumis/messages.hpp"
#include "etalumis/numbering.hpp"

namespace etalumis {

/// The executions of one connection's scripted requests. Numbers of addresses and names live as long as it does.
class Scripted final : public Execution {
  public:
    /// Without a channel there is no engine to ask: a request's control set is then ignored.
    explicit Scripted(AddressBook& book, Channel* channel = nullptr, wire::Writer* out = nullptr)
        : Execution(book), channel_(channel), out_(out), numbering_(book) {}

    /// Takes a request. Throws ProtocolError where it names an address that nobody has sent.
    void begin(Request request) {
        request_ = std::move(request);
        columns_.clear();
        abandoned_ = false;
        end_ = End::finished;
        ++batch_;
        for (const std::string& address : request_.new_addresses) numbering_.hear(address);
        resolve(request_.script, script_);
        resolve(request_.control_sites, control_);
        given_.clear();
        for (std::uint32_t i = 0; i < request_.observe.size(); ++i) {
            const std::uint32_t name = numbering_.name(request_.observe[i].name);
            if (given_.size() <= name) given_.resize(name + 1);
            given_[name].push_back(i);
        }
        stop_ = request_.stop_at.empty() ? none : book_.id(request_.stop_at);
    }
    void start(std::uint64_t index) {
        Execution::start();
        ++execution_;
        key_ = {request_.seed, index};
        draws_ = observes_ = tags_ = next_script_ = 0;
        log_likelihood_ = 0.0;
        end_ = End::finished;
        met_.assign(given_.size(), 0);
        if (request_.max_seconds > 0.0) started_ = Clock::now();
    }
    /// Ends the execution that has been started; `result` is null where the model returned nothing.
    void finish(const View* result) {
        columns_.draws.lengths.push_back(draws_);
        columns_.observes.lengths.push_back(observes_);
        columns_.tags.lengths.push_back(tags_);
        columns_.results.lengths.push_back(result == nullptr ? 0 : 1);
        if (result != nullptr) columns_.results.add(*result);
        columns_.log_likelihood.push_back(end_ == End::rejected ? -detail::infinity : log_likelihood_);
        columns_.ended.push_back(static_cast<std::uint8_t>(end_));
    }
    /// The execution can't go on, and neither can the batch.
    bool fail(const std::string& why) {
        if (end_ == End::finished) {
            end_ = End::failed;
            columns_.error = why;
        }
        return false;
    }
    /// The engine answered with something unexpected: the whole request is void.
    bool abandoned() const { return abandoned_; }
    bool failed() const { return end_ == End::failed; }

    const Request& request() const { return request_; }
    const Columns& columns() const { return columns_; }
    /// Writes the columns as a message, which the engine will get; throws std::length_error where it would be too long.
    void write(wire::Writer& out) {
        columns_.write(out, numbering_.new_addresses(), numbering_.new_names());
        numbering_.sent();
    }
    /// The columns will not be sent.
    void discard() { numbering_.discard(); }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr std::uint32_t none = detail::HashIndex::none;

    bool on_sample(const Distribution& distribution, const Label& label, bool control, double* value) override {
        const std::uint32_t address = base(label);
        Site& site = sites_.at(address, Site::sample, distribution.code());
        const std::uint32_t instance = site.next_instance(execution_);
        if (address == stop_ && instance == request_.stop_instance) return end(End::stopped);
        if (request_.max_draws > 0 && draws_ >= request_.max_draws) return end(End::exhausted);
        if (request_.max_seconds > 0.0 && seconds() > request_.max_seconds) return end(End::exhausted);
        const std::uint32_t name = numbering_.name(label.name);
        const std::size_t size = distribution.size();
        const bool conditioned = is_given(name);
        if (conditioned) {
            const double* forced = next_given(name, size);
            if (forced == nullptr) return false;
            std::copy(forced, forced + size, value);
        } else if (const Request::Site* scripted = scripted_at(address, distribution.code(), instance, size)) {
            const double* replayed = &request_.script_values[scripted->first];
            std::copy(replayed, replayed + size, value);
        } else if (asks(address, distribution, instance, control)) {
            const wire::Place place{instance, draws_};
            if (!ask(address, label.name, distribution, control, place, value)) return false;
        } else {
            distribution.draw(Statement(key_, Kind::sample, draws_), value);
        }
        const double log_prob = distribution.log_prob(value);
        record(columns_.draws, address, site, instance, name, distribution, conditioned ? 0.0 : log_prob);
        columns_.draws.add_value(value, size);
        columns_.control.push_back(control && !conditioned ? 1 : 0);
        columns_.conditioned.push_back(conditioned ? 1 : 0);
        ++draws_;
        if (conditioned) log_likelihood_ += log_prob;
        return scored(log_prob, address, distribution);
    }

    bool on_observe(const Distribution& distribution, const Label& label, const View* value) override {
        const std::uint32_t address = base(label);
        Site& site = sites_.at(address, Site::observe, distribution.code());
        const std::uint32_t instance = site.next_instance(execution_);
        const std::uint32_t name = numbering_.name(label.name);
        const std::size_t size = distribution.size();
        const double* numbers = nullptr;
        if (value != nullptr) {
            if (is_given(name)) {
                return fail("the simulator supplies the value of observe '" + std::string(label.name) +
                            "' itself, so the engine's is refused");
            }
            if (value->size != size) return fail("observe got a value of another size than its distribution has");
            numbers = value->data;
        } else if (is_given(name)) {
            numbers = next_given(name, size);
            if (numbers == nullptr) return false;
        }
        const bool observed = numbers != nullptr;
        const double log_prob = observed ? distribution.log_prob(numbers) : 0.0;
        if (!observed && request_.draw_observations) {
            drawn_.resize(size);
            distribution.draw(Statement(key_, Kind::observe, observes_), drawn_.data());
            numbers = drawn_.data();
        }
        record(columns_.observes, address, site, instance, name, distribution, log_prob);
        columns_.observes.add_value(numbers, numbers == nullptr ? 0 : size);
        columns_.observed.push_back(observed ? 1 : 0);
        ++observes_;
        log_likelihood_ += log_prob;
        return scored(log_prob, address, distribution);
    }

    bool on_tag(const View& value, const Label& label) override {
        const std::uint32_t address = base(label);
        add_tag(address, sites_.at(address, Site::tag, 0).next_instance(execution_), label.name, value);
        return true;
    }
    /// A marker is kept as a tag: how many draws there were before it, and the log likelihood.
    bool on_mark(std::string_view address) override {
        const std::uint32_t id = book_.id(address);
        const std::uint32_t instance = sites_.at(id, Site::tag, 0).next_instance(execution_);
        if (id == stop_ && instance == request_.stop_instance) return end(End::stopped);
        const double before[2] = {static_cast<double>(draws_), log_likelihood_};
        add_tag(id, instance, {}, {before, 2, pair_});
        return true;
    }
    void add_tag(std::uint32_t address, std::uint32_t instance, std::string_view name, const View& value) {
        ValueColumns& tags = columns_.tags;
        tags.address.push_back(numbering_.number(address));
        tags.instance.push_back(instance);
        tags.name.push_back(numbering_.name(name));
        tags.add(value);
        ++tags_;
    }

    void record(StatementColumns& columns, std::uint32_t address, Site& site, std::uint32_t instance,
                std::uint32_t name, const Distribution& distribution, double log_prob) {
        if (site.batch != batch_) site.row = none;
        site.batch = batch_;
        site.row = columns_.distributions.row(distribution, site.row);
        columns.address.push_back(numbering_.number(address));
        columns.instance.push_back(instance);
        columns.name.push_back(name);
        columns.distribution.push_back(site.row);
        columns.log_prob.push_back(log_prob);
    }
    bool scored(double log_prob, std::uint32_t address, const Distribution& distribution) {
        if (log_prob != log_prob) {
            return fail(std::string("log density is not a number at address ") + book_[address] + " (" +
                        distribution.family() + "); look for a NaN among the parameters or the data there");
        }
        return log_prob == -detail::infinity && request_.reject_zero ? end(End::rejected) : true;
    }
    bool end(End how) {
        end_ = how;
        return false;
    }
    double seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

    // --- values that the engine gave ---------------------------------------------------------------------------------

    struct SiteTable {
        detail::HashIndex index;
        std::vector<Request::Site> sites;  // with our own number of the base address
    };
    static std::uint64_t hash_of(std::uint32_t base, std::uint8_t family, std::uint32_t instance) {
        return detail::mix(detail::mix(base, family), instance);
    }
    void resolve(const std::vector<Request::Site>& sites, SiteTable& table) {
        table.index.clear();
        table.sites = sites;
        for (std::uint32_t i = 0; i < sites.size(); ++i) {
            Request::Site& site = table.sites[i];
            site.address = numbering_.base(site.address);
            if (site.address == none) throw ProtocolError("a request names an unknown address");
            table.index.insert(hash_of(site.address, site.family, site.instance), i);
        }
    }
    static bool matches(const Request::Site& site, std::uint32_t base, std::uint8_t family, std::uint32_t instance) {
        return site.address == base && site.family == family && site.instance == instance;
    }
    static std::uint32_t find(const SiteTable& table, std::uint32_t base, std::uint8_t family, std::uint32_t instance) {
        return table.index.find(hash_of(base, family, instance),
                                [&](std::uint32_t i) { return matches(table.sites[i], base, family, instance); });
    }
    const Request::Site* scripted_at(std::uint32_t base, std::uint8_t family, std::uint32_t instance,
                                     std::size_t size) {
        const std::vector<Request::Site>& sites = script_.sites;
        if (sites.empty()) return nullptr;
        std::uint32_t at = next_script_;  // a replayed trace comes in its own order
        if (at >= sites.size() || !matches(sites[at], base, family, instance))
            at = find(script_, base, family, instance);
        if (at == none) return nullptr;
        next_script_ = at + 1;
        return sites[at].size == size ? &sites[at] : nullptr;
    }
    bool is_given(std::uint32_t name) const { return name < given_.size() && !given_[name].empty(); }
    std::string quoted(std::uint32_t name) const { return "observe['" + numbering_.name_text(name) + "']"; }
    /// The value for this meeting of the name, or null after `fail`.
    const double* next_given(std::uint32_t name, std::size_t size) {
        const std::uint32_t meeting = met_[name]++;
        const std::vector<std::uint32_t>& values = given_[name];
        if (meeting >= values.size()) {
            fail(quoted(name) + " has " + std::to_string(values.size()) + " value(s), but one execution met the name " +
                 std::to_string(meeting + 1) + " times; give a list with a value for each meeting");
            return nullptr;
        }
        const Request::Given& given = request_.observe[values[meeting]];
        if (given.size != size) {
            fail(quoted(name) + " has " + std::to_string(given.size) + " numbers; the model observes " +
                 std::to_string(size));
            return nullptr;
        }
        return &request_.observe_values[given.first];
    }

    // --- draws that come back to the engine --------------------------------------------------------------------------

    bool asks(std::uint32_t base, const Distribution& distribution, std::uint32_t instance, bool control) const {
        if (channel_ == nullptr || request_.control == Request::Control::none) return false;
        if (!control || !distribution.shape().empty()) return false;
        if (request_.control == Request::Control::all) return true;
        return find(control_, base, distribution.code(), instance) != none;
    }
    bool ask(std::uint32_t address, std::string_view name, const Distribution& distribution, bool control,
             const wire::Place& place, double* value) {
        try {
            wire::write_sample(*out_, book_[address], name, distribution, control, &place);
            const wire::Table answer = channel_->exchange(*out_);
            if (wire::kind(answer) == Body::sample_result) {
                const std::vector<double> drawn = wire::read_sample_result(answer, distribution.size());
                std::copy(drawn.begin(), drawn.end(), value);
                return true;
            }
        } catch (const ProtocolError&) {  // as any other unexpected message
        }
        abandoned_ = true;
        return false;
    }

    Channel* channel_;
    wire::Writer* out_;
    Request request_;
    Columns columns_;
    StreamKey key_;
    Clock::time_point started_;
    std::uint64_t execution_ = 0, batch_ = 0;
    std::uint32_t draws_ = 0, observes_ = 0, tags_ = 0, next_script_ = 0, stop_ = none;
    double log_likelihood_ = 0.0;
    End end_ = End::finished;
    bool abandoned_ = false;

    Sites sites_;
    Numbering numbering_;
    std::vector<std::vector<std::uint32_t>> given_;  // by name: rows of the request's values
    std::vector<std::uint32_t> met_;                 // by name: meetings in this execution
    SiteTable script_, control_;
    std::vector<double> drawn_;
    Shape pair_{2};
};

}  // namespace etalumis
