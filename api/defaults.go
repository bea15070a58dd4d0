package api

import (
	"time"

	"github.com/attache-dev/attache/api/v1alpha1"
	"github.com/attache-dev/attache/internal/awsrole"
	"github.com/attache-dev/attache/internal/podspool"
)

// Values of text fields that are enumerations. The first of each group is the
// default.
const (
	SchemeHTTPS = "https"
	SchemeHTTP  = "http"

	GrantClientCredentials = "clientCredentials"
	GrantTokenExchange     = "tokenExchange"
	GrantJWTBearer         = "jwtBearer"

	ClientAuthPrivateKeyJWT = "privateKeyJWT"
	ClientAuthJWTSVID       = "jwtSVID"
	ClientAuthJWTSPIFFE     = "jwtSPIFFE"
	ClientAuthNone          = "none"
	ClientAuthSecretBasic   = "clientSecretBasic" // in a cluster, by its broker
	ClientAuthSecretPost    = "clientSecretPost"
	ClientAuthTLS           = "tlsClientAuth"

	BodyForm = "form"
	BodyJSON = "json"

	PartyHuman    = "human"
	PartyWorkload = "workload"
	PartyNone     = "none"

	InjectBearer = "bearer"
	InjectHeader = "header"
	InjectBasic  = "basic"
	InjectQuery  = "query"
	InjectDPoP   = "dpop"
	InjectSigV4  = "sigv4"

	InjectBySidecar = "sidecar"
	InjectByRelay   = "relay"

	DoorEnv         = "env"
	DoorContainer   = "container"
	DoorIMDS        = "imds"
	DoorWebIdentity = "webIdentity"

	RevokeIAMDeny = "iamDeny"
	RevokeMinIO   = "minio"

	TargetNamespace      = "Namespace"
	TargetServiceAccount = "ServiceAccount"

	InjectExplicit    = "explicit"
	InjectTransparent = "transparent"

	RedirectRoot    = "root"
	RedirectSidecar = "sidecar"

	IdentityToken          = "token"
	IdentityPodCertificate = "podCertificate"

	ModeEnforce = "enforce"
	ModeAudit   = "audit"

	SourceEmbedded = "embedded"
	SourceSPIFFE   = "spiffe"

	OnFullRefuse    = "refuse"
	OnFullOverwrite = "overwrite"
)

const (
	defaultTTL          = v1alpha1.Duration(5 * time.Minute)
	defaultOAuthTimeout = v1alpha1.Duration(10 * time.Second)
	defaultSession      = v1alpha1.Duration(15 * time.Minute) // the least that STS issues
)

func defaultDestinations(ds []v1alpha1.Destination) {
	for i := range ds {
		d := &ds[i]
		fill(&d.Scheme, SchemeHTTPS)
		if d.Scheme == SchemeHTTP {
			fill(&d.Port, 80)
		}
		fill(&d.Port, 443)
	}
}

func defaultProvider(s *v1alpha1.CredentialProviderSpec) {
	defaultDestinations(s.Destinations)
	fill(&s.TTL, defaultTTL)
	if s.AWS != nil {
		defaultAWS(s)
	}
	if s.RetryStatus == nil && s.AWS == nil {
		s.RetryStatus = []int{401}
	}
	if o := s.OAuth2; o != nil {
		defaultOAuth2(o)
		if o.DPoP {
			fill(&s.Inject.As, InjectDPoP) // RFC 9449 section 7.1
		}
	}
	fill(&s.Inject.As, InjectBearer)
	if s.Inject.RequirePlaceholder == nil {
		required := len(s.Placeholders) > 0
		s.Inject.RequirePlaceholder = &required
	}
	if s.APIKey != nil && s.APIKey.Vault != nil {
		v := s.APIKey.Vault
		fill(&v.AuthMount, "jwt")
		fill(&v.Field, "value")
		fill(&v.Audience, v.Address)
	}
	for i := range s.BaseURLs {
		b := &s.BaseURLs[i]
		fill(&b.Port, portOf(s.Destinations, b.Host))
		fill(&b.Scheme, SchemeHTTP)
		fill(&b.Listen, "127.0.0.1:0")
	}
}

func defaultOAuth2(o *v1alpha1.OAuth2) {
	if o.Grant == GrantJWTBearer {
		fill(&o.ClientAuth, ClientAuthNone) // RFC 7523 section 2.1: the assertion is the proof
	}
	fill(&o.ClientAuth, ClientAuthPrivateKeyJWT)
	fill(&o.Body, BodyForm)
	fill(&o.Timeout, defaultOAuthTimeout)
	if o.Grant != GrantTokenExchange {
		return
	}
	fill(&o.Subject, PartyHuman)
	if o.Subject == PartyHuman {
		fill(&o.Actor, PartyWorkload)
	}
	fill(&o.Actor, PartyNone)
}

// defaultAWS fills in what an aws provider leaves out. Its placeholders are the
// access key id and the secret key, in this order.
func defaultAWS(s *v1alpha1.CredentialProviderSpec) {
	a := s.AWS
	fill(&s.Inject.As, InjectSigV4)
	if len(s.Placeholders) == 0 {
		s.Placeholders = []v1alpha1.Placeholder{
			{Env: "AWS_ACCESS_KEY_ID", Prefix: "AKIA"},
			{Env: "AWS_SECRET_ACCESS_KEY"},
		}
	}
	fill(&a.Audience, "sts.amazonaws.com")
	fill(&a.Duration, defaultSession)
	fill(&a.CallsPerSecond, 20)
	fill(&a.Timeout, v1alpha1.Duration(10*time.Second))
	if len(a.Doors) == 0 {
		a.Doors = []string{DoorEnv}
	}
	if a.NoEscapes == nil {
		minio := awsrole.IsMinIO(a.RoleARN)
		a.NoEscapes = &minio
	}
	if a.Chain != nil {
		fill(&a.Chain.Duration, defaultSession)
	}
	for i := range a.Endpoints {
		fill(&a.Endpoints[i].Port, 443)
		fill(&a.Endpoints[i].Region, a.Region)
	}
}

// portOf is the port of the one destination for host; 443 if several differ.
func portOf(ds []v1alpha1.Destination, host string) int {
	port := 0
	for _, d := range ds {
		if !covers(d.Host, host) {
			continue
		}
		if port != 0 && port != d.Port {
			return 443
		}
		port = d.Port
	}
	if port == 0 {
		return 443
	}
	return port
}

func defaultPolicy(s *v1alpha1.AccessPolicySpec, c v1alpha1.AttacheConfigSpec) {
	fill(&s.Mode, ModeEnforce)
	defaultDestinations(s.Destinations)
	for i := range s.Rules {
		r := &s.Rules[i]
		fill(&r.AgentCredential, v1alpha1.AgentCredentialsStrip)
		fill(&r.AnswerCredentials, v1alpha1.AnswersSeal)
		fill(&r.Durability, c.Audit.Durability)
	}
}

func defaultConfig(place Place) v1alpha1.AttacheConfig {
	c := v1alpha1.AttacheConfig{
		TypeMeta: v1alpha1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.KindAttacheConfig},
		Metadata: v1alpha1.ObjectMeta{Name: "default"},
	}
	fillConfig(&c.Spec, place)
	return c
}

func fillConfig(s *v1alpha1.AttacheConfigSpec, place Place) {
	spool := int64(1 << 30)
	if place == PlacePod {
		spool = podspool.MaxSpool // the pod's own size decides
	}
	fill(&s.TrustDomain, "attache.local")
	fill(&s.Identity.Source, SourceEmbedded)
	fill(&s.Identity.RotateEvery, v1alpha1.Duration(24*time.Hour))
	for i := range s.Humans {
		fill(&s.Humans[i].MaxAge, v1alpha1.Duration(10*time.Minute))
		if s.Humans[i].RequireBinding == nil {
			required := true
			s.Humans[i].RequireBinding = &required
		}
	}
	fill(&s.Tasks.MaxTTL, v1alpha1.Duration(time.Hour))
	fill(&s.Audit.MaxBytes, spool)
	fill(&s.Audit.SegmentBytes, min(64<<20, s.Audit.MaxBytes/2))
	fill(&s.Audit.OnFull, OnFullRefuse)
	fill(&s.Audit.Durability, v1alpha1.DurabilityProcess)
	fill(&s.Audit.Heartbeat, v1alpha1.Duration(30*time.Second))
	fill(&s.Audit.CollectorWait, v1alpha1.Duration(5*time.Second))
	fill(&s.Audit.Keep, v1alpha1.Duration(24*time.Hour))
	fill(&s.Audit.KeepBytes, s.Audit.MaxBytes/2)
	fill(&s.Audit.DrainTimeout, v1alpha1.Duration(5*time.Second))
	fill(&s.Audit.Redact.Tokens, v1alpha1.RedactMask)
	fill(&s.Audit.Redact.SQLLiterals, v1alpha1.RedactMask)
	for i := range s.Audit.Sinks {
		sink := &s.Audit.Sinks[i]
		fill(&sink.Name, sink.Type)
		fill(&sink.Compression, "gzip")
		fill(&sink.Timeout, v1alpha1.Duration(10*time.Second))
		switch sink.Type {
		case SinkOTLP:
			fill(&sink.Protocol, "grpc")
		case SinkFile:
			fill(&sink.File.MaxBytes, 100<<20)
			fill(&sink.File.MaxAge, v1alpha1.Duration(24*time.Hour))
		case SinkObjectStore:
			fill(&sink.ObjectStore.Every, v1alpha1.Duration(10*time.Second))
			fill(&sink.ObjectStore.LockMode, "compliance")
		}
		if sink.Type != SinkOTLP {
			fill(&sink.Format, SinkOCSF)
		}
	}
	fillLimits(&s.Limits)
	if s.Tracing.SampleRatio == nil {
		ratio := 0.01
		s.Tracing.SampleRatio = &ratio
	}
}

func fillLimits(l *v1alpha1.Limits) {
	fill(&l.MaxHeaderBytes, 64<<10)
	fill(&l.MaxHeaders, 200)
	fill(&l.MaxConnections, 10_000)
	fill(&l.MaxStreams, 250)
	fill(&l.HeaderTimeout, v1alpha1.Duration(10*time.Second))
	fill(&l.IdleTimeout, v1alpha1.Duration(3*time.Minute))
	fill(&l.DialTimeout, v1alpha1.Duration(10*time.Second))
	fill(&l.TLSTimeout, v1alpha1.Duration(10*time.Second))
	fill(&l.ResponseTimeout, v1alpha1.Duration(10*time.Minute))
	fill(&l.ContinueTimeout, v1alpha1.Duration(3*time.Second))
	fill(&l.TunnelIdleTimeout, v1alpha1.Duration(10*time.Minute))
	fill(&l.OriginIdleTimeout, v1alpha1.Duration(90*time.Second))
	fill(&l.MaxAnswerHeaderBytes, 1<<20)
	fill(&l.MaxReplayBytes, 64<<10)
	fill(&l.DrainTimeout, v1alpha1.Duration(20*time.Second))
	fill(&l.MaxIdlePerHost, 256)
	fill(&l.LeafCacheSize, 1024)
	fill(&l.CredentialCache, 4096)
}
