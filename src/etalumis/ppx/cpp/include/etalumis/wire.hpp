// Writing and reading FlatBuffers, as much of the format as PPX needs and no more: tables, strings, vectors of numbers
// and of strings. No library is needed, and nothing that a peer sends is trusted.
//
// The layout in short: an offset to the root table comes first. A table starts with the (signed) distance back to its
// vtable, which lists the size of itself, the size of the table, and for each field its place in the table, or 0 where
// the field is absent. Strings, vectors and tables inside tables are unsigned offsets from the field forward to them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "PPX messages are little-endian; this machine is not"
#endif

namespace etalumis {

/// A message that is not PPX, or damaged.
class ProtocolError : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

namespace wire {

/// Builds one message front to back: a table's own fields first, then what they refer to.
class Writer {
  public:
    /// Where the offset to something that is still to be written has been left open.
    using Reference = std::size_t;

    class Table {
      public:
        template <class T>
        Table& put(std::size_t field, T value) {
            const std::size_t place = open<T>(field);
            std::memcpy(&out_.bytes_[place], &value, sizeof value);
            return *this;
        }
        Reference reference(std::size_t field) { return open<std::uint32_t>(field); }
        /// Call after the last field and before anything else is written.
        void close() { out_.set<std::uint16_t>(vtable_ + 2, static_cast<std::uint16_t>(out_.bytes_.size() - start_)); }

      private:
        friend class Writer;
        Table(Writer& out, std::size_t vtable, std::size_t start) : out_(out), vtable_(vtable), start_(start) {}

        template <class T>
        std::size_t open(std::size_t field) {
            out_.align(sizeof(T));
            const std::size_t place = out_.bytes_.size();
            out_.bytes_.resize(place + sizeof(T));
            out_.set<std::uint16_t>(vtable_ + 4 + 2 * field, static_cast<std::uint16_t>(place - start_));
            return place;
        }
        Writer& out_;
        std::size_t vtable_;
        std::size_t start_;
    };

    /// Starts a message; returns the reference to its root table.
    Reference begin() {
        bytes_.assign(8, 0);
        std::memcpy(&bytes_[4], "PPXF", 4);
        return 0;
    }
    /// A table with room for `fields` fields (a union counts as two).
    Table table(Reference reference, std::size_t fields) {
        const std::size_t reach = 4 + 2 * fields;
        align(2);
        if ((bytes_.size() + reach) % 4 != 0) bytes_.resize(bytes_.size() + 2);
        const std::size_t vtable = bytes_.size();
        const std::size_t start = vtable + reach;
        bytes_.resize(start + 4);
        set<std::uint16_t>(vtable, static_cast<std::uint16_t>(reach));
        set<std::int32_t>(start, static_cast<std::int32_t>(reach));
        point(reference, start);
        return {*this, vtable, start};
    }
    void string(Reference reference, std::string_view text) {
        align(4);
        start_vector(reference, text.size());
        append(text.data(), text.size());
        bytes_.push_back(0);
    }
    template <class T>
    void vector(Reference reference, const T* data, std::size_t size) {
        align(4);
        if (sizeof(T) == 8 && bytes_.size() % 8 == 0) bytes_.resize(bytes_.size() + 4);  // the elements are aligned
        start_vector(reference, size);
        append(data, size * sizeof(T));
    }
    template <class T>
    void vector(Reference reference, const std::vector<T>& data) {
        vector(reference, data.data(), data.size());
    }
    template <class Strings>
    void strings(Reference reference, const Strings& texts) {
        align(4);
        start_vector(reference, texts.size());
        const std::size_t first = bytes_.size();
        bytes_.resize(first + 4 * texts.size());
        std::size_t i = 0;
        for (const auto& text : texts) string(first + 4 * i++, text);
    }

    const std::vector<std::uint8_t>& bytes() const { return bytes_; }

  private:
    void align(std::size_t width) { bytes_.resize((bytes_.size() + width - 1) / width * width); }
    void append(const void* data, std::size_t size) {
        const std::size_t place = bytes_.size();
        bytes_.resize(place + size);
        if (size > 0) std::memcpy(&bytes_[place], data, size);
    }
    void start_vector(Reference reference, std::size_t size) {
        if (bytes_.size() > 0x7FFFFFFFu)
            throw std::length_error("a PPX message is limited to 2 GiB: ask for fewer traces");
        point(reference, bytes_.size());
        const auto length = static_cast<std::uint32_t>(size);
        append(&length, 4);
    }
    void point(Reference reference, std::size_t target) {
        set<std::uint32_t>(reference, static_cast<std::uint32_t>(target - reference));
    }
    template <class T>
    void set(std::size_t place, T value) {
        std::memcpy(&bytes_[place], &value, sizeof value);
    }
    std::vector<std::uint8_t> bytes_;
};

/// A message being read; every access is checked against its end.
struct Buffer {
    const std::uint8_t* data;
    std::size_t size;

    template <class T>
    T get(std::size_t place) const {
        check(place, sizeof(T));
        T value;
        std::memcpy(&value, data + place, sizeof value);
        return value;
    }
    void check(std::size_t place, std::size_t length) const {
        if (place > size || length > size - place) throw ProtocolError("an offset points beyond the message");
    }
    std::size_t follow(std::size_t place) const { return place + get<std::uint32_t>(place); }
};

/// A table of a message; an absent table reads as one whose fields are all absent.
class Table {
  public:
    Table() = default;
    Table(Buffer buffer, std::size_t place) : buffer_(buffer), place_(place) {
        const auto vtable = static_cast<std::int64_t>(place) - buffer.get<std::int32_t>(place);
        if (vtable < 0) throw ProtocolError("a vtable lies before the message");
        vtable_ = static_cast<std::size_t>(vtable);
        reach_ = buffer.get<std::uint16_t>(vtable_);
        length_ = buffer.get<std::uint16_t>(vtable_ + 2);
        if (reach_ < 4 || length_ < 4) throw ProtocolError("a table without a vtable");
        buffer.check(vtable_, reach_);
        buffer.check(place, length_);
    }
    static Table root(Buffer buffer) { return {buffer, buffer.follow(0)}; }

    bool has(std::size_t field) const { return offset(field, 1) != 0; }
    template <class T>
    T get(std::size_t field, T absent) const {
        const std::size_t at = offset(field, sizeof(T));
        return at == 0 ? absent : buffer_.get<T>(place_ + at);
    }
    Table table(std::size_t field) const {
        const std::size_t at = offset(field, 4);
        return at == 0 ? Table() : Table(buffer_, buffer_.follow(place_ + at));
    }
    std::string_view string(std::size_t field) const {
        const std::size_t at = offset(field, 4);
        return at == 0 ? std::string_view() : text(buffer_.follow(place_ + at));
    }
    template <class T>
    std::vector<T> vector(std::size_t field) const {
        const std::size_t at = offset(field, 4);
        if (at == 0) return {};
        const std::size_t start = buffer_.follow(place_ + at);
        const std::size_t size = buffer_.get<std::uint32_t>(start);
        buffer_.check(start + 4, size * sizeof(T));
        std::vector<T> out(size);
        if (size > 0) std::memcpy(out.data(), buffer_.data + start + 4, size * sizeof(T));
        return out;
    }
    std::vector<std::string_view> strings(std::size_t field) const {
        std::vector<std::string_view> out;
        const std::size_t at = offset(field, 4);
        if (at == 0) return out;
        const std::size_t start = buffer_.follow(place_ + at);
        const std::size_t size = buffer_.get<std::uint32_t>(start);
        buffer_.check(start + 4, 4 * size);
        std::size_t spare = buffer_.size;  // repeated offsets can't multiply a message
        for (std::size_t i = 0; i < size; ++i) {
            out.push_back(text(buffer_.follow(start + 4 + 4 * i)));
            const std::size_t bytes = out.back().size() + 4;
            if (bytes > spare) throw ProtocolError("a list of strings is larger than its message");
            spare -= bytes;
        }
        return out;
    }

  private:
    std::size_t offset(std::size_t field, std::size_t width) const {
        const std::size_t entry = 4 + 2 * field;
        if (entry + 2 > reach_) return 0;
        const std::size_t at = buffer_.get<std::uint16_t>(vtable_ + entry);
        if (at != 0 && (at < 4 || at + width > length_)) throw ProtocolError("a field lies outside of its table");
        return at;
    }
    std::string_view text(std::size_t start) const {
        const std::size_t size = buffer_.get<std::uint32_t>(start);
        buffer_.check(start + 4, size);
        return {reinterpret_cast<const char*>(buffer_.data + start + 4), size};
    }

    Buffer buffer_{nullptr, 0};
    std::size_t place_ = 0, vtable_ = 0, reach_ = 0, length_ = 0;
};

}  // namespace wire
}  // namespace etalumis
