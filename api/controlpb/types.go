package controlpb

// Type URLs of the resources that travel by delta ADS.
const (
	BundleType     = "type.googleapis.com/attache.control.v1.Bundle"
	RevocationType = "type.googleapis.com/attache.control.v1.Revocation"
)
