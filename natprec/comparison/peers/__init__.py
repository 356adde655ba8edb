"""Other people's quantizers, each run as its own users run it, in a process of its own.

`worker.py` is started as a script, by whichever interpreter has the peer, and loads one of the other
files by its path: nothing here but `natprec_method.py` imports natprec, so that a peer's environment needs only
torch, transformers and the peer. A peer is a file with three functions:

    quantize(job, model, ids)   the timed part; returns whatever `save` and `dense` need
    save(job, done, folder)     the checkpoint, as the peer's users save it
    dense(job, done, folder)    name → float32 weight as the checkpoint reconstructs it
"""
