"""What tests are made with: HAProxys of several versions, servers that demand PROXY, an agent in a folder."""
