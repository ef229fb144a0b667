"""Profiles as if measured, for tests that need no host."""

from __future__ import annotations

from edgesplit.fleet import Fleet, HostProfile, LinkProfile, StageTimes

NAMES = ("desk", "shelf", "attic")  # desk is the trusted entry
MIB = 2**20


def fleet(layer: float = 2e-3, **layers: float) -> Fleet:
    """A profile as if measured: `layer` seconds per layer everywhere, or per host by name."""
    return Fleet(
        hosts={
            name: HostProfile(
                cores=1,
                memory_total=2**34,
                memory_available=2**33,
                load=0,
                python="3.11",
                packages={},
                device="cpu",
                runtime_bytes=400 * MIB,
                times=StageTimes(
                    decode_layer=layers.get(name, layer),
                    decode_overhead=1e-3,
                    prefill_layer=layers.get(name, layer),
                    prefill_overhead=1e-3,
                    head=1e-3,
                    chunk_tokens=8,
                    context=24,
                ),
            )
            for name in NAMES
        },
        links={a: {b: LinkProfile(rtt=1e-4, bandwidth=1e9) for b in NAMES if b != a} for a in NAMES},
        measured_at=0.0,
        plan="",
    )
