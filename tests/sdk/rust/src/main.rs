//! The AWS SDK for Rust with nothing but the environment: who am I?  See ../README.md for the two modes.

use std::error::Error;
use std::process::ExitCode;

use aws_config::BehaviorVersion;
use aws_sdk_sts::config::ProvideCredentials;
use aws_sdk_sts::error::DisplayErrorContext;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{}", DisplayErrorContext(&*err));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &[String]) -> Result<(), Box<dyn Error>> {
    let Some("resolve") = args.first().map(String::as_str) else {
        let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
        let who = aws_sdk_sts::Client::new(&config).get_caller_identity().send().await?;
        println!("{}", who.arn().ok_or("STS sent no ARN")?);
        return Ok(());
    };
    for _ in 0..args.get(1).ok_or("resolve how often?")?.parse::<u32>()? {
        let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
        let chain = config.credentials_provider().ok_or("no credentials provider")?;
        println!("{}", chain.provide_credentials().await?.access_key_id());
    }
    Ok(())
}
