// Package rules checks what the chart gives to Prometheus and Grafana: that
// alerts fire when they should and only then, that every query can be parsed
// and asks for metrics that exist, and that each alert has its page.
package rules
