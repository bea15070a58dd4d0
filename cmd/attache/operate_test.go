package main

import (
	"strings"
	"testing"

	"github.com/attache-dev/attache/minting"
)

// TestInventoryIsSafeForTerminals: an agent chooses the names of objects.
func TestInventoryIsSafeForTerminals(t *testing.T) {
	var b strings.Builder
	if err := printInventory(&b, []minting.LiveCredential{{Handle: "cred_1", Scope: []string{"s3:GetObject arn:aws:s3:::b/\x1b[31m\u202ek"}}}); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); !strings.Contains(got, "s3:GetObject arn:aws:s3:::b/") || strings.ContainsAny(got, "\x1b\u202e") {
		t.Errorf("got %q", got)
	}
}
