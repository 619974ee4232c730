//! Answers as other STSs write them, each after its documentation or its source.

use secrecy::ExposeSecret as _;

use super::*;
use crate::stub::Stub;

const MINIO_ROLE: &str = "arn:minio:iam:::role/dUKfuhOtqwdF4Dg5vmQqzXKCtWs";

fn in_an_hour() -> jiff::Timestamp {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 3600).unwrap()
}

async fn answered(role: &str, answer: String) -> (Result<Credentials, Error>, String) {
    let sts = Stub::plain(answer).await;
    let client = StsClient::new("us-east-1", own(format!("http://{}", sts.addr))).unwrap();
    (ask(&client, &plan(role, &[])).await, sts.only_request().body)
}

#[tokio::test]
async fn minios_answer_is_understood() {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn></Arn><AssumeRoleId></AssumeRoleId></AssumedRoleUser>\
         <Credentials><AccessKeyId>Y4RJU1RNFGK48LGO9I2S</AccessKeyId><SecretAccessKey>one</SecretAccessKey>\
         <SessionToken>two</SessionToken><Expiration>{}</Expiration></Credentials>\
         <SubjectFromWebIdentityToken>system:serviceaccount:shop:web</SubjectFromWebIdentityToken>\
         </AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>18A1</RequestId></ResponseMetadata>\
         </AssumeRoleWithWebIdentityResponse>",
        in_an_hour()
    );
    let (credentials, asked) = answered(MINIO_ROLE, xml(200, &body)).await;
    let credentials = credentials.unwrap();
    assert_eq!(credentials.access_key_id, "Y4RJU1RNFGK48LGO9I2S");
    assert_eq!(credentials.secret_access_key.expose_secret(), "one");
    assert_eq!(credentials.session_token.expose_secret(), "two");
    assert!(
        credentials.life > Duration::from_secs(3590),
        "its clock is taken for ours where it sends no Date"
    );
    assert!(
        asked.contains("RoleArn=arn%3Aminio%3Aiam%3A%3A%3Arole%2FdUKfuhOtqwdF4Dg5vmQqzXKCtWs"),
        "{asked}"
    );
}

#[tokio::test]
async fn cephs_answer_is_understood() {
    // No namespace, AssumeRoleId for AssumedRoleId, nanoseconds, and fields in another order.
    let expiration = in_an_hour().to_string().replace('Z', ".123456789Z");
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>\
         <SubjectFromWebIdentityToken>system:serviceaccount:shop:web</SubjectFromWebIdentityToken>\
         <Audience>sts.amazonaws.com</Audience><AssumedRoleUser><Arn>arn:aws:sts:::assumed-role/web/shop.web</Arn>\
         <AssumeRoleId>8bd6:shop.web</AssumeRoleId></AssumedRoleUser><Credentials><AccessKeyId>9jLLMXEM</AccessKeyId>\
         <Expiration>{expiration}</Expiration><SecretAccessKey>ONE</SecretAccessKey><SessionToken>two==</SessionToken>\
         </Credentials><Provider>https://oidc.example.com</Provider><PackedPolicySize>0</PackedPolicySize>\
         </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    );
    for role in ["arn:aws:iam:::role/web", "arn:aws:iam:::role/team/a/web", "arn:aws:iam::tenant1:role/web"] {
        let (credentials, _) = answered(role, xml(200, &body)).await;
        let credentials = credentials.unwrap();
        assert_eq!(credentials.access_key_id, "9jLLMXEM");
        assert_eq!(credentials.session_token.expose_secret(), "two==");
        assert_eq!(credentials.packed_policy_percent, Some(0));
    }
}

#[tokio::test]
async fn localstacks_and_motos_answer_is_understood() {
    let expiration = in_an_hour().to_string().replace('Z', ".722058Z");
    let body = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>LSIAQAAAAAAVNCBMPNSG</AccessKeyId>\
         <SecretAccessKey>one</SecretAccessKey><SessionToken>two</SessionToken><Expiration>{expiration}</Expiration>\
         </Credentials><AssumedRoleUser><AssumedRoleId>AROA:shop.web</AssumedRoleId>\
         <Arn>arn:aws:sts::000000000000:assumed-role/web/shop.web</Arn></AssumedRoleUser><PackedPolicySize>6</PackedPolicySize>\
         </AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>c6104cbe</RequestId></ResponseMetadata>\
         </AssumeRoleWithWebIdentityResponse>"
    );
    let (credentials, _) = answered("arn:aws:iam::000000000000:role/web", xml(200, &body)).await;
    assert_eq!(credentials.unwrap().access_key_id, "LSIAQAAAAAAVNCBMPNSG");
}

#[tokio::test]
async fn refusals_of_other_stss_are_refusals_and_their_trouble_is_trouble() {
    let sts = |code: &str| {
        format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type></Type><Code>{code}</Code>\
             <Message>Role {MINIO_ROLE} does not exist</Message></Error><RequestId>173D</RequestId></ErrorResponse>"
        )
    };
    // Ceph answers as its S3 does: no ErrorResponse.
    let s3 = |code: &str| {
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message></Message>\
             <RequestId>tx0000</RequestId><HostId>1064-default</HostId></Error>"
        )
    };
    for (status, body, code) in [
        (400, sts("InvalidParameterValue"), "StsDenied"),
        (403, sts("AccessDenied"), "StsDenied"),
        (400, sts("ExpiredToken"), "StsDenied"),
        (503, sts("STSNotInitialized"), "StsUnavailable"),
        (500, sts("InternalError"), "StsUnavailable"),
        (403, s3("AccessDenied"), "StsDenied"),
        (404, s3("NoSuchEntity"), "StsDenied"),
        (503, s3("SlowDown"), "StsThrottled"),
        (500, s3("UnknownError"), "StsUnavailable"),
        (404, String::new(), "StsUnavailable"),
    ] {
        let (result, _) = answered(MINIO_ROLE, xml(status, &body)).await;
        assert_eq!(result.unwrap_err().code(), code, "{body}");
    }
}

#[tokio::test]
async fn an_s3_that_is_taken_for_an_sts_is_named() {
    let buckets = "<?xml version=\"1.0\"?><ListAllMyBucketsResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                   <Buckets></Buckets></ListAllMyBucketsResult>";
    let (result, _) = answered(ROLE, xml(200, buckets)).await;
    let why = away(result);
    assert!(why.contains("an S3's answer and not an STS's"), "{why}");
}
