//! The xDS contract both planes share: resource names, the sans-io ADS session, and thin gRPC client and server shells.
