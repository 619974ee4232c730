"""One call by boto3 with nothing but the environment: SERVICE OPERATION PARAMETERS-AS-JSON. Prints the answer as JSON, or ends with 1."""

import json
import sys

import boto3
import botocore.exceptions


def text(value):
    """What JSON has no form for: streams and blobs are text here, times are words."""
    if hasattr(value, "read"):
        value = value.read()
    # Ciphertexts are no text; as Latin-1 every byte comes back as it was.
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


service, operation, parameters = sys.argv[1:]
parameters = json.loads(parameters)
for name in ("CiphertextBlob", "SecretBinary"):
    if name in parameters:
        parameters[name] = parameters[name].encode("latin-1")
try:
    answer = getattr(boto3.client(service), operation)(**parameters)
except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
answer.pop("ResponseMetadata", None)
print(json.dumps(answer, default=text))
