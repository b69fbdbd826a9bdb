"""
The container's side of a job: `python -m lmi_build.sagemaker`.

It needs the standard library and, where it reaches AWS, boto3. What it builds was
decided elsewhere: the channel `job` holds the plan, and this room carries it out.
"""
