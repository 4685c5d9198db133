//! Keeps the certificate in its Secret, and API servers told what to believe, together with other replicas. Each does the
//! same: reads, works out what is due, writes with the version that it has read. Who comes second takes what the first wrote.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{DynamicObject, GroupVersionKind, Resource, ResourceExt};
use kube::discovery::ApiResource;
use kube::{Api, Client};
use musubi::cancel::Cancel;
use musubi::store::kubernetes::Connection;
use musubi::store::kubernetes::connection::{Failure, Patience};
use serde_json::{Value, json};

use super::secret::{Kept, Order, due};
use super::{Shown, Trouble};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two looks while all is well, at most.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two looks while something is not.
const SOON: Duration = Duration::from_secs(2);

/// Where things are kept.
#[derive(Debug, Clone)]
pub struct Places {
    /// The namespace of the Secret.
    pub namespace: String,
    /// The Secret, which is there, if only empty: who may create Secrets in a namespace could make tokens of its accounts.
    pub secret: String,
    /// The name of both webhook configurations.
    pub configurations: String,
}

/// The keeper.
pub struct Keeper {
    connection: Arc<Connection>,
    places: Places,
    order: Order,
    shown: Shown,
    trouble: Trouble,
}

/// How one look ended.
enum Look {
    /// All is as it should be.
    Well,
    /// Another replica was faster: look again.
    Overtaken,
}

impl Keeper {
    /// A keeper of what `shown` shows.
    #[must_use]
    pub fn new(connection: Arc<Connection>, places: Places, order: Order, shown: Shown) -> Self {
        Self { connection, places, order, shown, trouble: Trouble::default() }
    }

    /// Where it says what is wrong.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    /// Keeps for ever.
    pub async fn keep(self) {
        loop {
            let pause = match self.look().await {
                Ok(Look::Well) => {
                    self.trouble.set(None);
                    self.pause()
                }
                Ok(Look::Overtaken) => SOON.min(self.pause()),
                Err(problem) => {
                    self.trouble.set(Some(format!("{problem:#}")));
                    SOON.min(self.pause())
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Often enough to be in time for each step of a certificate's life.
    fn pause(&self) -> Duration {
        let life = Duration::try_from(self.order.lifetime).unwrap_or(PAUSE);
        (life / 60).min(PAUSE)
    }

    /// The configurations are read before the Secret: so nobody puts an older bundle over a newer one.
    async fn look(&self) -> anyhow::Result<Look> {
        let configurations = [self.configuration(0).await?, self.configuration(1).await?];
        let secret = self.secret().await?;
        let mut kept = secret.data.as_ref().and_then(Kept::read);
        let believed = kept.as_ref().is_some_and(|kept| configurations.iter().all(|c| c.believes(&kept.bundle())));
        if let Some(new) = due(kept.as_ref(), believed, &self.order, Timestamp::now())? {
            if !self.write(secret, &new).await? {
                return Ok(Look::Overtaken);
            }
            kept = Some(new);
        }
        let Some(kept) = kept else { return Ok(Look::Overtaken) };
        self.shown.show(&kept.shown)?;
        for configuration in configurations.iter().filter(|configuration| !configuration.believes(&kept.bundle())) {
            if !self.tell(configuration, &kept.bundle()).await? {
                return Ok(Look::Overtaken);
            }
        }
        Ok(Look::Well)
    }

    /// A request, tried once.
    async fn ask<T, F: Future<Output = kube::Result<T>>>(
        &self,
        what: &'static str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, Failure> {
        let patience = Patience { deadline: Instant::now() + ANSWER, once: true, cancel: Cancel::default() };
        self.connection.request(what, &patience, request).await
    }

    async fn secret(&self) -> anyhow::Result<Secret> {
        let Places { namespace, secret, .. } = &self.places;
        let found = self
            .ask("get secret", |client| async move { Api::<Secret>::namespaced(client, namespace).get(secret).await });
        found.await.map_err(|failure| match failure {
            Failure::Refused(status) if status.code == 404 => {
                anyhow::anyhow!("there is no Secret {namespace}/{secret}; deploy/webhook has it, empty")
            }
            failure => anyhow::anyhow!("Secret {namespace}/{secret}: {failure}"),
        })
    }

    /// Writes the Secret, if nobody has since it was read.
    async fn write(&self, mut secret: Secret, kept: &Kept) -> anyhow::Result<bool> {
        secret.data = Some(kept.write());
        let Places { namespace, secret: name, .. } = &self.places;
        let written =
            self.ask("update secret", |client| {
                let secret = &secret;
                async move {
                    Api::<Secret>::namespaced(client, namespace).replace(name, &PostParams::default(), secret).await
                }
            });
        match written.await {
            Ok(_) => Ok(true),
            Err(Failure::Refused(status)) if status.code == 409 => Ok(false),
            Err(failure) => anyhow::bail!("Secret {namespace}/{name}: {failure}"),
        }
    }

    async fn configuration(&self, which: usize) -> anyhow::Result<Configuration> {
        let name = &self.places.configurations;
        let resource =
            [resource::<ValidatingWebhookConfiguration>(), resource::<MutatingWebhookConfiguration>()][which].clone();
        let found = self.ask("get webhook configuration", |client| {
            let api = Api::<DynamicObject>::all_with(client, &resource);
            async move { api.get(name).await }
        });
        let object = found.await.map_err(|failure| anyhow::anyhow!("{} {name}: {failure}", resource.kind))?;
        Ok(Configuration { resource, object })
    }

    /// Has API servers believe a bundle, if nobody has changed the configuration since it was read.
    async fn tell(&self, configuration: &Configuration, bundle: &str) -> anyhow::Result<bool> {
        let (name, resource) = (&self.places.configurations, &configuration.resource);
        let patch: Patch<Value> = Patch::Json(serde_json::from_value(configuration.patch(bundle))?);
        let told = self.ask("patch webhook configuration", |client| {
            let (api, patch) = (Api::<DynamicObject>::all_with(client, resource), &patch);
            async move { api.patch_metadata(name, &PatchParams::default(), patch).await }
        });
        match told.await {
            Ok(_) => Ok(true),
            // The test of the version has failed.
            Err(Failure::Refused(status)) if matches!(status.code, 409 | 422) => Ok(false),
            Err(failure) => anyhow::bail!("{} {name}: {failure}", resource.kind),
        }
    }
}

/// A webhook configuration as it was read.
struct Configuration {
    resource: ApiResource,
    object: DynamicObject,
}

impl Configuration {
    fn webhooks(&self) -> &[Value] {
        self.object.data["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn believes(&self, bundle: &str) -> bool {
        let encoded = BASE64_STANDARD.encode(bundle);
        self.webhooks().iter().all(|webhook| webhook["clientConfig"]["caBundle"] == encoded)
    }

    fn patch(&self, bundle: &str) -> Value {
        let encoded = BASE64_STANDARD.encode(bundle);
        let version =
            json!({"op": "test", "path": "/metadata/resourceVersion", "value": self.object.resource_version()});
        let bundles = (0..self.webhooks().len()).map(
            |index| json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": encoded}),
        );
        std::iter::once(version).chain(bundles).collect()
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    let kind = GroupVersionKind::gvk(&K::group(&()), &K::version(&()), &K::kind(&()));
    ApiResource::from_gvk_with_plural(&kind, &K::plural(&()))
}
