package issuer

import (
	"context"
	"slices"
	"strings"

	authv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// maxToken bounds a service-account token; those of the API server have some
// 1.5 KiB.
const maxToken = 16 << 10

// Keys of TokenReview's extra (k8s.io/apiserver/pkg/authentication/serviceaccount).
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// bound is what the API server says of a token.
type bound struct {
	namespace, account string
	pod, uid, node     string
}

// review asks the API server whether token is valid now, for our audience, and
// bound to which pod. It is never verified here: only the API server knows
// whether the pod still exists.
func review(ctx context.Context, c client.Client, token, audience string) (bound, error) {
	if token == "" || len(token) > maxToken {
		return bound{}, invalid(reasonToken, "the token is missing or longer than %d bytes", maxToken)
	}
	r := &authv1.TokenReview{
		ObjectMeta: metav1.ObjectMeta{},
		Spec:       authv1.TokenReviewSpec{Token: token, Audiences: []string{audience}},
	}
	if err := c.Create(ctx, r); err != nil {
		return bound{}, broken("have a token reviewed", err)
	}
	return readReview(r.Status, audience)
}

func readReview(st authv1.TokenReviewStatus, audience string) (bound, error) {
	// An authenticator that knows no audiences answers none: then the token may
	// be for anybody.
	if !st.Authenticated || !slices.Contains(st.Audiences, audience) {
		return bound{}, deny(reasonToken, "the API server does not accept the token for audience %s", audience)
	}
	ns, sa, ok := strings.Cut(strings.TrimPrefix(st.User.Username, "system:serviceaccount:"), ":")
	if !ok || !strings.HasPrefix(st.User.Username, "system:serviceaccount:") || ns == "" || sa == "" {
		return bound{}, deny(reasonToken, "the token is not a service account's")
	}
	b := bound{namespace: ns, account: sa, pod: one(st, extraPodName), uid: one(st, extraPodUID), node: one(st, extraNodeName)}
	if b.pod == "" || b.uid == "" {
		return bound{}, deny(reasonUnbound, "the token is not bound to a pod")
	}
	return b, nil
}

func one(st authv1.TokenReviewStatus, key string) string {
	if v := st.User.Extra[key]; len(v) == 1 {
		return v[0]
	}
	return ""
}
