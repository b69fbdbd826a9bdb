"""
Programs that run in a Neuron toolchain's own Python, and how they are spoken to.

They are written for Python 3.8 with nothing but the standard library and the
toolchain, and know nothing of lmi-build. `workplace.ship` puts this package into a
folder of its own, `DRIVER/neuron_drivers/`, with a `DRIVER/__main__.py` beside it, so
that neither `optimum.py` nor `trace.py` here hides the toolchain's `optimum` or the
standard library's `trace`. Within the package imports are relative for that reason.

    python3 DRIVER probe NAME...          what is installed, as one line
    python3 DRIVER build CALL.json RESULT compile into the empty folder RESULT

CALL.json is an object:

    call      a `NeuronCall` as JSON; `loader` names the module here
    model     the model's folder, absolute, as the toolchain sees it
    device    whether Neuron cores may be used
    versions  versions that distributions must have; one suffix `+...` is not compared
    block     what `config.json` says under `neuron`, or null
    workdir   where the toolchain runs; LMI's is `/tmp`

A module of a loader has `build(session)` and imports its toolchain only inside it: the
call's environment is set before. `common.Session` gives it

    session.call, session.model, session.device, session.block   what was asked
    session.make(value)         plain values with each `factory` in them made
    session.path(name)          a path under RESULT; its folder exists afterwards
    session.keep(name, value)   into RESULT/neuron.json
    session.graph()             one graph is compiled; forked processes may say it

and `common` has `check_arguments(function, names)`, which refuses a name that the real
signature would swallow, and `Fault(code, message)` for what the user must hear.

Lines on standard output that begin with `LMI-BUILD ` hold one JSON object each:
`{"event": "toolchain" | "step" | "graph" | "fault" | "done", ...}`. A fault has `kind`
(`tool`, `unsupported` or `failed`), `code`, `message` and `hints`. Exit status: 0 done,
3 a fault that was said, 1 the toolchain raised (also said as a fault, with its class),
2 the words of the command were wrong. Anything else is a signal or the toolchain's own.
"""
