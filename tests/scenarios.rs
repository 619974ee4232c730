//! Every way to a role, each from the ServiceAccount to a call of a service, with the AccessDenied that must follow.
//!
//! A scenario is a file in `scenarios/` with one test of its name; `make scenarios` runs them all, and
//! `cargo test --test scenarios NAME` one. What they are made of is `support/scenario.rs`: [`scenario::scenario`] gives a node and a Kubernetes
//! namespace of their own, `it.aws` says what AWS has, `it.agent` starts the agent with the flags of that way, `it.pod` a pod, and `call` has boto3
//! call a service from inside. To add one: copy `scenarios/annotated_service_account.rs`, and give it a line below.

#[path = "support/agent.rs"]
mod agent;
#[path = "support/apiserver.rs"]
mod apiserver;
#[path = "support/aws.rs"]
mod aws;
#[path = "support/http.rs"]
mod http;
#[path = "support/issuer.rs"]
mod issuer;
#[path = "support/moto.rs"]
mod moto;
#[path = "support/net.rs"]
mod net;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/node_metadata.rs"]
mod node_metadata;
#[path = "support/page.rs"]
mod page;
#[path = "support/pki.rs"]
mod pki;
#[path = "support/process.rs"]
mod process;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/scenario.rs"]
mod scenario;
#[path = "support/sdk.rs"]
mod sdk;
#[path = "support/site.rs"]
mod site;
#[path = "support/stub.rs"]
mod stub;
#[path = "support/tenant.rs"]
mod tenant;
#[path = "support/tunnel.rs"]
mod tunnel;
#[path = "support/two_sts.rs"]
mod two_sts;

#[path = "scenarios/annotated_service_account.rs"]
mod annotated_service_account;
#[path = "scenarios/application_assumes_a_role_itself.rs"]
mod application_assumes_a_role_itself;
#[path = "scenarios/beside_eks_pod_identity_agent.rs"]
mod beside_eks_pod_identity_agent;
#[path = "scenarios/central_issuer_where_flags_cannot_change.rs"]
mod central_issuer_where_flags_cannot_change;
#[path = "scenarios/china_by_its_own_domain.rs"]
mod china_by_its_own_domain;
#[path = "scenarios/external_secrets_like_operator_mints_its_own_tokens.rs"]
mod external_secrets_like_operator_mints_its_own_tokens;
#[path = "scenarios/external_secrets_style_chain.rs"]
mod external_secrets_style_chain;
#[path = "scenarios/govcloud_by_its_fips_endpoint.rs"]
mod govcloud_by_its_fips_endpoint;
#[path = "scenarios/irsa_annotation_untouched.rs"]
mod irsa_annotation_untouched;
#[path = "scenarios/irsa_emu_style_iam_user.rs"]
mod irsa_emu_style_iam_user;
#[path = "scenarios/irsa_pod_with_both_variables.rs"]
mod irsa_pod_with_both_variables;
#[path = "scenarios/keys_of_the_secret_rotate.rs"]
mod keys_of_the_secret_rotate;
#[path = "scenarios/kiam_permitted_namespace.rs"]
mod kiam_permitted_namespace;
#[path = "scenarios/kind_walkthrough_self_hosted_issuer.rs"]
mod kind_walkthrough_self_hosted_issuer;
#[path = "scenarios/kube2iam_annotated_pod.rs"]
mod kube2iam_annotated_pod;
#[path = "scenarios/kube2iam_by_the_nodes_role.rs"]
mod kube2iam_by_the_nodes_role;
#[path = "scenarios/kube2iam_pod_without_any_variable.rs"]
mod kube2iam_pod_without_any_variable;
#[path = "scenarios/local_cluster_with_untouched_manifests.rs"]
mod local_cluster_with_untouched_manifests;
#[path = "scenarios/localstack_as_the_sts.rs"]
mod localstack_as_the_sts;
#[path = "scenarios/microk8s_default_audience.rs"]
mod microk8s_default_audience;
#[path = "scenarios/minio_style_arn_behind_a_path_prefix.rs"]
mod minio_style_arn_behind_a_path_prefix;
#[path = "scenarios/pod_as_the_aws_webhook_writes_it.rs"]
mod pod_as_the_aws_webhook_writes_it;
#[path = "scenarios/pod_without_any_variable.rs"]
mod pod_without_any_variable;
#[path = "scenarios/pods_with_tagged_sessions.rs"]
mod pods_with_tagged_sessions;
#[path = "scenarios/regional_call_through_an_https_proxy.rs"]
mod regional_call_through_an_https_proxy;
#[path = "scenarios/roles_anywhere_style_credential_process.rs"]
mod roles_anywhere_style_credential_process;
#[path = "scenarios/second_role_by_the_pages_commands.rs"]
mod second_role_by_the_pages_commands;
#[path = "scenarios/several_roles_of_one_service_account.rs"]
mod several_roles_of_one_service_account;
#[path = "scenarios/sts_at_an_ipv6_literal.rs"]
mod sts_at_an_ipv6_literal;
#[path = "scenarios/variable_by_admission_policy.rs"]
mod variable_by_admission_policy;
#[path = "scenarios/variable_by_envfrom.rs"]
mod variable_by_envfrom;
#[path = "scenarios/vault_style_kms_client_behind_a_private_ca.rs"]
mod vault_style_kms_client_behind_a_private_ca;
#[path = "scenarios/vpc_endpoint_without_private_dns.rs"]
mod vpc_endpoint_without_private_dns;
