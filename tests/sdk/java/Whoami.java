import software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider;
import software.amazon.awssdk.core.exception.SdkException;
import software.amazon.awssdk.services.sts.StsClient;

/** The AWS SDK for Java v2 with nothing but the environment: who am I? See ../README.md for the two modes. */
public final class Whoami {
    public static void main(String[] args) {
        try {
            if (args.length == 0 || args[0].equals("identity")) {
                try (StsClient sts = StsClient.create()) {
                    System.out.println(sts.getCallerIdentity().arn());
                }
                return;
            }
            for (int i = 0; i < Integer.parseInt(args[1]); i++) {
                try (DefaultCredentialsProvider chain = DefaultCredentialsProvider.builder().build()) {
                    System.out.println(chain.resolveCredentials().accessKeyId());
                }
            }
        } catch (SdkException e) {
            System.err.println(e);
            System.exit(1);
        }
    }
}
