// Package chart tests charts/attache: what it renders, which values it
// refuses, and, against a real API server, that its guards deny the attacks of
// who may create pods in an opted-in namespace, and nothing else.
package chart
