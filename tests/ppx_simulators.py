"""Simulator processes for the tests of PPX: ``python ppx_simulators.py NAME ADDRESS``. Some misbehave on purpose."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import zmq

from etalumis.distributions import Categorical, Gamma, Mixture, Normal, Poisson, Uniform
from etalumis.execution import factor, observe, sample, tag
from etalumis.ppx import messages as m
from etalumis.ppx.codec import Decoder, Encoder
from etalumis.ppx.serve import serve
from etalumis.simulators.classics import HiddenMarkov, MiniCaptcha, branching, gaussian, marsaglia


def zoo() -> float:
    """Scalars and arrays, controlled or not, named or not, tags, factors, repeated names."""
    n = sample(Poisson(3.0), name="n")
    weights = sample(Gamma([1.0, 2.0], 1.5), name="weights")
    total = 0.0
    for step in range(n):
        total += sample(Normal(float(weights[0]), 1.0 + step), name="walk", control=step % 2 == 0)
    kind = sample(Categorical([0.2, 0.3, 0.5]))
    shift = sample(Mixture([0.5, 0.5], [Normal(-1.0, 0.5), Normal(1.0, 0.5)]), name="shift")
    observe(Normal([total, shift, float(kind)], [1.0, 2.0, 3.0]), name="y")
    observe(Normal(total, 1.0), 0.5)
    observe(Normal(shift, 1.0), name="z")
    tag(weights * 2.0, name="double")
    tag(total, name="total")
    factor(-0.25 * kind)
    return total


def three_hundred() -> float:
    total = 0.0
    for _ in range(300):
        total += sample(Uniform(0.0, 1.0))
    observe(Normal(total, 1.0), name="y")
    return total


def crashing() -> float:
    """Dies in the executions whose first draw is large."""
    x = sample(Uniform(0.0, 1.0), name="x")
    if x > 0.97:
        print("ran out of luck", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    observe(Normal(x, 1.0), name="y")
    return x


def hanging() -> float:
    x = sample(Uniform(0.0, 1.0), name="x")
    if x > 0.97:
        print("thinking", flush=True)
        time.sleep(60.0)
    return x


def raising() -> float:
    x = sample(Uniform(0.0, 1.0), name="x")
    if x > 0.97:
        raise RuntimeError("no convergence")
    return x


def flaky() -> float:
    """Dies in one execution of fifty, wherever it is."""
    x = sample(Normal(0.0, 1.0), name="x")
    if time.time_ns() // 1000 % 50 == 0:
        os._exit(3)
    observe(Normal(x, 1.0), name="y")
    return x


def falling() -> float:
    """Dies where the file ``$FALL`` is, and takes it away."""
    x = sample(Normal(0.0, 1.0), name="x")
    fall = Path(os.environ["FALL"])
    if fall.exists():
        fall.unlink()
        os._exit(3)
    return x


def slow() -> float:
    x = sample(Normal(0.0, 1.0), name="x")
    time.sleep(0.001)
    observe(Normal(x, 1.0), name="y")
    return x


def raw(address: str, answer: str) -> None:
    """A PPX 1.0.0 simulator written by hand; ``answer`` is what it does wrong in every third run."""
    socket = zmq.Context().socket(zmq.REP)
    socket.bind(address)
    encoder, decoder = Encoder(), Decoder()
    runs = 0
    while True:
        said = decoder.decode(socket.recv())
        if isinstance(said, m.Handshake):
            socket.send(encoder.encode(m.HandshakeResult("raw", "raw")))
            continue
        if not isinstance(said, m.Run):
            socket.send(encoder.encode(m.Reset()))
            continue
        runs += 1
        socket.send(encoder.encode(m.Sample("[f()+0x1]", "x", Normal(0.0, 1.0))))
        result = decoder.decode(socket.recv())
        if not isinstance(result, m.SampleResult):
            socket.send(encoder.encode(m.Reset()))
            continue
        if runs % 3 == 0 and answer == "garbage":
            socket.send(b"\xff" * 40)
            socket.recv()
            continue
        if runs % 3 == 0 and answer == "reset":
            socket.send(encoder.encode(m.Reset()))
            continue
        if runs % 3 == 0 and answer == "confused":
            socket.send(encoder.encode(m.SampleResult(1.0)))
            continue
        socket.send(encoder.encode(m.Observe("[f()+0x9]", "y", Normal(result.result, 1.0), None)))
        if isinstance(decoder.decode(socket.recv()), m.ObserveResult):
            socket.send(encoder.encode(m.RunResult(result.result)))
        else:
            socket.send(encoder.encode(m.Reset()))


MODELS = {
    f.__name__: f
    for f in (gaussian, marsaglia, branching, zoo, three_hundred, crashing, hanging, raising, flaky, falling, slow)
}
MODELS |= {"hidden_markov": HiddenMarkov(steps=6), "captcha": MiniCaptcha()}
RAW = ("garbage", "reset", "confused", "good")

if __name__ == "__main__":
    name, address = sys.argv[1:]
    if name in RAW:
        raw(address, name)
    elif name == "stillborn":
        sys.exit("no licence found")
    else:
        # An engine that was killed can't stop its simulators: they leave by themselves.
        serve(MODELS[name], address, idle=30.0)
