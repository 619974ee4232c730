"""boto3 with nothing but the environment: who am I?  See ../README.md for the two modes."""

import sys

import boto3
import botocore.exceptions


def main(mode: str = "identity", times: str = "1") -> None:
    if mode == "identity":
        print(boto3.client("sts").get_caller_identity()["Arn"])
        return
    for _ in range(int(times)):
        credentials = boto3.Session().get_credentials()
        if credentials is None:
            sys.exit("no credentials")
        print(credentials.get_frozen_credentials().access_key, flush=True)


try:
    main(*sys.argv[1:])
except botocore.exceptions.BotoCoreError as error:
    sys.exit(f"{type(error).__name__}: {error}")
except botocore.exceptions.ClientError as error:
    sys.exit(str(error))
