// Command mcp is an MCP server over streamable HTTP with one tool. It prints
// its address and ends with its standard input. The harness stands in front of
// it and verifies credentials.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type input struct {
	Question string `json:"question" jsonschema:"what to answer"`
}

func answer(_ context.Context, r *mcp.CallToolRequest, in input) (*mcp.CallToolResult, any, error) {
	who := r.Extra.Header.Get("Compat-Client") // set by the harness once the token is verified
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: "answer to " + strconv.Quote(in.Question) + " for " + who}}}, nil, nil
}

func main() {
	server := mcp.NewServer(&mcp.Implementation{Name: "compat", Version: "1"}, nil)
	mcp.AddTool(server, &mcp.Tool{Name: "whoami", Description: "says who calls"}, answer)
	h := mcp.NewStreamableHTTPHandler(func(*http.Request) *mcp.Server { return server }, &mcp.StreamableHTTPOptions{DisableLocalhostProtection: true})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println(ln.Addr())
	log.Fatal((&http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}).Serve(ln))
}
