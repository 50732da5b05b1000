// Base addresses: where in a simulator's code a statement stands.
//
// By default the address is the chain of calls from the model function to the statement, outermost first, each frame
// as `demangled symbol+0xoffset`: "[forward()+0x204; muon(double)+0x3f]". A frame without a symbol in the dynamic
// table (a static function, or a program linked without -rdynamic) is spelled `object file+0xoffset` instead. Chains
// are recognised by their program counters and spelled once. An address may also be given explicitly.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <unwind.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "etalumis/hash_index.hpp"

namespace etalumis {

/// The program counters of a statement's callers, innermost first, up to the frame that called the model.
class CallStack {
  public:
    /// Frames at or above this address of the stack are not the model's.
    void set_root(const void* root) { root_ = reinterpret_cast<std::uintptr_t>(root); }

    /// Reads the stack; the function that this is inlined into is the statement and is left out.
    [[gnu::always_inline]] inline void capture() {
        skip_ = 1;
        frames_.clear();
        _Unwind_Backtrace(&CallStack::visit, this);
        if (reached_root_ && frames_.size() > 1) frames_.pop_back();  // the frame that owns the root calls the model
        reached_root_ = false;
    }

    const std::vector<void*>& frames() const { return frames_; }

  private:
    static _Unwind_Reason_Code visit(_Unwind_Context* context, void* self) {
        auto& stack = *static_cast<CallStack*>(self);
        if (stack.skip_ > 0) {
            --stack.skip_;
            return _URC_NO_REASON;
        }
        if (static_cast<std::uintptr_t>(_Unwind_GetCFA(context)) > stack.root_) {
            stack.reached_root_ = true;
            return _URC_END_OF_STACK;
        }
        // NOLINTNEXTLINE(performance-no-int-to-ptr): an address in the code, never followed
        stack.frames_.push_back(reinterpret_cast<void*>(_Unwind_GetIP(context)));
        return _URC_NO_REASON;
    }

    std::vector<void*> frames_;
    std::uintptr_t root_ = UINTPTR_MAX;
    int skip_ = 0;
    bool reached_root_ = false;
};

/// Interns base addresses as consecutive numbers. Belongs to one thread.
class AddressBook {
  public:
    std::uint32_t id(const CallStack& stack) {
        const std::vector<void*>& frames = stack.frames();
        const std::uint64_t hash = detail::hash_bytes(frames.data(), frames.size() * sizeof(void*));
        const std::uint32_t known =
            chain_index_.find(hash, [&](std::uint32_t i) { return chains_[i].frames == frames; });
        if (known != detail::HashIndex::none) return chains_[known].id;
        const std::uint32_t made = id(spell(frames));
        chain_index_.insert(hash, static_cast<std::uint32_t>(chains_.size()));
        chains_.push_back({frames, made});
        return made;
    }
    std::uint32_t id(std::string_view text) {
        const std::uint64_t hash = detail::hash_text(text);
        const std::uint32_t known = text_index_.find(hash, [&](std::uint32_t i) { return texts_[i] == text; });
        if (known != detail::HashIndex::none) return known;
        const auto made = static_cast<std::uint32_t>(texts_.size());
        text_index_.insert(hash, made);
        texts_.emplace_back(text);
        return made;
    }
    const std::string& operator[](std::uint32_t id) const { return texts_[id]; }
    std::size_t size() const { return texts_.size(); }

  private:
    struct Chain {
        std::vector<void*> frames;
        std::uint32_t id;
    };

    std::string spell(const std::vector<void*>& frames) {
        std::string text = "[";
        for (auto frame = frames.rbegin(); frame != frames.rend(); ++frame) {
            if (frame != frames.rbegin()) text += "; ";
            text += symbol(*frame);
        }
        return text + "]";
    }
    const std::string& symbol(void* counter) {
        const auto [entry, fresh] = symbols_.try_emplace(counter);
        if (fresh) entry->second = look_up(counter);
        return entry->second;
    }
    static std::string look_up(void* counter) {
        Dl_info info{};
        const char* place = static_cast<const char*>(counter);
        if (dladdr(place - 1, &info) == 0) return "?";  // -1: the call, even where it is a function's last instruction
        if (info.dli_sname == nullptr) {
            const char* slash = std::strrchr(info.dli_fname, '/');
            return offset(slash == nullptr ? info.dli_fname : slash + 1, place, info.dli_fbase);
        }
        int status = 0;
        char* demangled = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
        std::string text = offset(status == 0 ? demangled : info.dli_sname, place, info.dli_saddr);
        std::free(demangled);
        return text;
    }
    static std::string offset(const char* name, const char* place, const void* start) {
        char digits[24];
        const auto distance = static_cast<unsigned long>(place - static_cast<const char*>(start));
        std::snprintf(digits, sizeof digits, "+0x%lx", distance);
        return std::string(name) + digits;
    }

    detail::HashIndex chain_index_, text_index_;
    std::vector<Chain> chains_;
    std::deque<std::string> texts_;
    std::unordered_map<void*, std::string> symbols_;
};

}  // namespace etalumis
