//! The API server as the commands need it: one namespace, the caller's name, and errors that say what to type.

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, SelfSubjectReviewStatus};
use kube::{
    Api, Client, Config, Resource,
    api::PostParams,
    config::{KubeConfigOptions, KubeconfigError},
};
use lifeboat_crds::refs::User;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    #[error("the kubeconfig cannot be used; check KUBECONFIG and `kubectl config view`")]
    Kubeconfig(#[from] KubeconfigError),
    #[error("{what} failed")]
    Api {
        what: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("there is no {kind} {name} in namespace {namespace}; see `kubectl get {kind} -A`")]
    NotFound { kind: &'static str, name: String, namespace: String },
    #[error(
        "Lifeboat is not installed in this cluster: `helm install lifeboat charts/lifeboat --namespace lifeboat-system --create-namespace`"
    )]
    NotInstalled,
    #[error("{what}: {remedy}")]
    Refused { what: String, remedy: String },
    #[error("could not {what}")]
    Io {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl PluginError {
    pub(crate) fn refused(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), remedy: remedy.into() }
    }
}

pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl Cluster {
    pub(crate) async fn connect(
        context: Option<String>,
        namespace: Option<String>,
    ) -> Result<Self, PluginError> {
        // Only fails when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = KubeConfigOptions { context, ..Default::default() };
        let config = Config::from_kubeconfig(&options).await?;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|source| api("connecting", source))?;
        Ok(Self { client, namespace })
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The caller, as the API server sees it: approvals and runs must carry exactly this.
    pub(crate) async fn caller(&self) -> Result<User, PluginError> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await;
        let review = review.map_err(|source| api("asking who you are", source))?;
        let SelfSubjectReviewStatus { user_info } = review.status.unwrap_or_default();
        let user = user_info.unwrap_or_default();
        Ok(User { username: user.username.unwrap_or_default(), groups: user.groups.unwrap_or_default() })
    }

    pub(crate) async fn get<K>(&self, kind: &'static str, name: &str) -> Result<K, PluginError>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        match self.api::<K>().get_opt(name).await {
            Ok(Some(object)) => Ok(object),
            Ok(None) => {
                Err(PluginError::NotFound { kind, name: name.to_owned(), namespace: self.namespace.clone() })
            }
            Err(source) => Err(api(&format!("reading {kind} {name}"), source)),
        }
    }

    pub(crate) async fn list<K>(&self, kind: &'static str) -> Result<Vec<K>, PluginError>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        match self.api::<K>().list(&Default::default()).await {
            Ok(list) => Ok(list.items),
            Err(kube::Error::Api(status)) if status.code == 404 => Err(PluginError::NotInstalled),
            Err(source) => Err(api(&format!("listing {kind}s"), source)),
        }
    }
}

pub(crate) fn api(what: &str, source: kube::Error) -> PluginError {
    PluginError::Api { what: what.to_owned(), source: Box::new(source) }
}
