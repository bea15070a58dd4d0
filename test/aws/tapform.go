package main

import (
	"context"
	"net/url"
)

// formKey carries the form of a request to STS to where its answer is read.
type formKey struct{}

func withForm(ctx context.Context, f url.Values) context.Context {
	return context.WithValue(ctx, formKey{}, f)
}

func formOf(ctx context.Context) url.Values {
	f, _ := ctx.Value(formKey{}).(url.Values)
	return f
}
