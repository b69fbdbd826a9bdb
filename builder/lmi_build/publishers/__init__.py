"""
Artifacts on their way to a bucket or a folder, and back.

`destination.publish` sends one, `reader.open_artifact` reads one, `check` compares one
with its manifest, `download` fetches one. The laws of publishing stand once, in
`laws`; `s3` and `folder` are the places they are applied to.
"""
