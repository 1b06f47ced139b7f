//! The store on Azure Storage (or Azurite) through the official crate.
