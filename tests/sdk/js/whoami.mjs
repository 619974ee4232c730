// The AWS SDK for JavaScript v3 with nothing but the environment: who am I?  See ../README.md for the two modes.
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const [mode = "identity", times = "1"] = process.argv.slice(2);

try {
  if (mode === "identity") {
    console.log((await new STSClient({}).send(new GetCallerIdentityCommand({}))).Arn);
  } else {
    for (let i = 0; i < Number(times); i++) {
      console.log((await new STSClient({}).config.credentials()).accessKeyId);
    }
  }
} catch (error) {
  console.error(`${error.name}: ${error.message}`);
  process.exitCode = 1;
}
