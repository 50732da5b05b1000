// The simulator's end of the wire: a ZeroMQ socket of type REP.
#pragma once

#include <zmq.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "etalumis/execution.hpp"
#include "etalumis/wire.hpp"

namespace etalumis {

/// Listens at an address such as "ipc:///tmp/sim" or "tcp://*:5555". Belongs to one thread.
class Connection final : public Channel {
  public:
    explicit Connection(const std::string& address)
        : context_(zmq_ctx_new(), zmq_ctx_term), socket_(zmq_socket(context_.get(), ZMQ_REP), zmq_close) {
        const int linger_ms = 1000;
        zmq_setsockopt(socket_.get(), ZMQ_LINGER, &linger_ms, sizeof linger_ms);
        const std::int64_t largest = 1 << 30;  // bytes of a message, as engines limit theirs
        zmq_setsockopt(socket_.get(), ZMQ_MAXMSGSIZE, &largest, sizeof largest);
        if (zmq_bind(socket_.get(), address.c_str()) != 0) fail("can't listen at " + address);
        zmq_msg_init(&message_);
    }
    ~Connection() { zmq_msg_close(&message_); }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    void send(const wire::Writer& message) {
        while (zmq_send(socket_.get(), message.bytes().data(), message.bytes().size(), 0) < 0) {
            if (errno != EINTR) fail("can't send");
        }
    }
    /// The next message, which is valid until the one after it; several frames, which PPX has not, are an error.
    wire::Table receive() {
        bool more = false;
        int frames = 0;
        do {
            while (zmq_msg_recv(&message_, socket_.get(), 0) < 0) {
                if (errno != EINTR) fail("can't receive");
            }
            more = zmq_msg_more(&message_) != 0;
            ++frames;
        } while (more);
        if (frames > 1) throw ProtocolError("a message of several frames");
        const auto* data = static_cast<const std::uint8_t*>(zmq_msg_data(&message_));
        return wire::Table::root({data, zmq_msg_size(&message_)});
    }
    wire::Table exchange(const wire::Writer& message) override {
        send(message);
        return receive();
    }

  private:
    [[noreturn]] static void fail(const std::string& what) {
        throw std::runtime_error(what + ": " + zmq_strerror(zmq_errno()));
    }

    std::unique_ptr<void, int (*)(void*)> context_, socket_;
    zmq_msg_t message_;
};

}  // namespace etalumis
