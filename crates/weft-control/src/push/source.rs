//! What one stream's session may send: translation, endpoints, secrets.

use std::sync::Arc;
use std::time::SystemTime;

use weft_model::Snapshot;
use weft_translate::{ProxyKind, ProxyView};
use weft_xds::session::{Set, Source, Want};
use weft_xds::{Resource, ResourceType, names};

use super::Trust;
use super::assignments::EndpointMemo;
use super::published::{Published, Translated};
use crate::ca::{Identity, StreamSecrets};

pub(super) struct ProxySource<'a> {
    view: &'a ProxyView,
    endpoint_view: ProxyView,
    endpoints: &'a EndpointMemo,
    published: Arc<Published>,
    translated: Option<Translated>,
    identity: Option<Identity>,
    secrets: Option<StreamSecrets>,
    /// When `default` must be looked at again; `None` while it is not served.
    pub(super) renew_at: Option<SystemTime>,
}

impl<'a> ProxySource<'a> {
    pub(super) fn new(
        view: &'a ProxyView,
        identity: Option<Identity>,
        trust: &Trust,
        endpoints: &'a EndpointMemo,
        published: Arc<Published>,
    ) -> Self {
        let secrets =
            identity.clone().map(|identity| StreamSecrets::new(trust.authority.clone(), identity));
        Self {
            view,
            endpoint_view: view.shared(&published.state.snapshot),
            endpoints,
            published,
            translated: None,
            identity,
            secrets,
            renew_at: None,
        }
    }

    /// Goes on with a newer configuration.
    pub(super) fn publish(&mut self, published: Arc<Published>) {
        self.endpoint_view = self.view.shared(&published.state.snapshot);
        self.published = published;
        self.translated = None;
    }

    fn translated(&mut self) -> &Translated {
        let Self { published, view, .. } = self;
        self.translated.get_or_insert_with(|| published.translated(view))
    }

    fn snapshot(&self) -> &Snapshot {
        &self.published.state.snapshot
    }

    fn secret(&mut self, name: &str) -> Option<Resource> {
        // Secrets are for those who proved who they are, and whom the mesh knows.
        let identity = self.identity.as_ref()?;
        let (namespace, account) = (identity.namespace(), identity.service_account());
        if !self.snapshot().has_service_account(namespace, account) {
            return None;
        }
        match name {
            names::SECRET_DEFAULT | names::SECRET_ROOT => self.own_secret(name),
            name if self.view.kind == ProxyKind::Gateway => {
                weft_translate::secret(self.snapshot(), self.view, name)
            }
            _ => None,
        }
    }

    fn own_secret(&mut self, name: &str) -> Option<Resource> {
        let secrets = self.secrets.as_mut()?;
        match secrets.at(SystemTime::now(), rand::random::<f64>()) {
            Ok(current) => {
                self.renew_at = Some(current.renew_at);
                match name {
                    names::SECRET_ROOT => Some(current.root.clone()),
                    _ => Some(current.certificate.clone()),
                }
            }
            Err(error) => {
                tracing::error!(%error, "a certificate could not be made");
                None
            }
        }
    }
}

impl Source for ProxySource<'_> {
    fn resources(&mut self, ty: ResourceType, want: Want<'_>) -> Set {
        match (ty, want) {
            (ResourceType::Endpoint, Want::Names(names)) => {
                let list = self.endpoints.endpoints(&self.endpoint_view, names.iter());
                Set { shared: list, own: Arc::default() }
            }
            (ResourceType::Secret, Want::Names(names)) => {
                names.iter().filter_map(|name| self.secret(name)).collect()
            }
            // Neither has a wildcard.
            (ResourceType::Endpoint | ResourceType::Secret, Want::All) => Set::default(),
            (ResourceType::NameTable, _) => {
                let names = self.published.names(&self.endpoint_view);
                Set { shared: names, own: Arc::default() }
            }
            (ty, want) => {
                let Some(set) = self.translated().set(ty) else { return Set::default() };
                match want {
                    Want::All => set,
                    Want::Names(names) => {
                        names.iter().filter_map(|name| set.get(name).cloned()).collect()
                    }
                }
            }
        }
    }
}
